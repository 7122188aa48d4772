/* credentials.h - what vmmd's own user has for a registry. */
#ifndef CORE_CREDENTIALS_H
#define CORE_CREDENTIALS_H

/* GITHUB_TOKEN for ghcr.io, else the docker config's entry ($DOCKER_CONFIG or ~/.docker, config.json): the registry's host, and what
 * follows `Basic`; untouched where there is none.  The caller mem_frees.  Blocking: for the pool. */
void credentials_find(const char *registry, char **ret_host, char **ret_basic);

#endif
