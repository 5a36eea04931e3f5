"""Files that describe clusters to others: KubeRay, Ray's cluster launcher, Docker Compose."""
