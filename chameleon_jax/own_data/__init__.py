"""From a path to a run: what data there is, which sizes fit it, this machine and a stated time, and the gin files that say so."""
