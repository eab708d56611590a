"""A published transcript, replayed through a dialect: where it would fork, join and differ. Pure."""
