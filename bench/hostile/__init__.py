"""What hostile inputs cost everybody else: `make hostile`; see docs/security.md."""
