"""From files as downloaded to frozen parts: checks, splits, Table 1, audit."""
