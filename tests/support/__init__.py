"""What several tests share: networks, exact answers, runs of tables, and the tolerances."""
