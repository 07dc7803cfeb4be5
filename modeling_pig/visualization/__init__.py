"""Pictures for people: ranked answers as rows of frames."""
