/* version.h - vmctl's version; the build may give it. */
#ifndef VMCTL_VERSION_H
#define VMCTL_VERSION_H

#ifdef VMMD_VERSION
#define VMCTL_VERSION VMMD_VERSION
#else
#define VMCTL_VERSION "0.1.0"
#endif

#endif
