"""All golden transcripts."""

from __future__ import annotations

from tests.support.transcripts import gemma4, named, tagged

TRANSCRIPTS = (*gemma4.TRANSCRIPTS, *tagged.TRANSCRIPTS, *named.TRANSCRIPTS)
