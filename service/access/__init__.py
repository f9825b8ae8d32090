"""Who may do what: tokens, their scopes and limits, and where a browser's page may come from. No socket in here."""
