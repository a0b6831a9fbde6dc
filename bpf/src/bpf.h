/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* bpf.h - kernel types, helpers, and the errno values a hook can answer. */
#ifndef MST_BPF_H
#define MST_BPF_H

#include <linux/bpf.h>
#include <linux/types.h>

#include <stdbool.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define EEXIST	     17
#define EADDRINUSE   98
#define ECONNREFUSED 111
#define EHOSTUNREACH 113

#define AF_INET	 2
#define AF_INET6 10

#define IPPROTO_ICMP   1
#define IPPROTO_TCP    6
#define IPPROTO_UDP    17
#define IPPROTO_ICMPV6 58

#endif /* MST_BPF_H */
