"""Where models come from: what lies in a repository, how it is configured, checked, loaded, swapped and withdrawn."""
