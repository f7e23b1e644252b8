"""What happens to models of every family: tiny random ones, and a small Mixtral that is trained here."""
