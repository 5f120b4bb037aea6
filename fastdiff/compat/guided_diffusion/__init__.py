"""improved- and guided-diffusion's modules, functions and classes on fastdiff."""
