"""What watching keeps in the journal's database: signals, alerts, silences, notices, incidents. It decides nothing."""
