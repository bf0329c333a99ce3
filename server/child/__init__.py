"""Child processes whose work others have priced: how they are started, and whose turn it is. HTTP process."""
