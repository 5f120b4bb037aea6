"""A package, so that processes which import a test by its name find this one; torch-fidelity installs another."""
