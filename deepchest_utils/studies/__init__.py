"""The laboratory: what one notebook or one table was made with. No API: nothing else imports it, and it may change."""
