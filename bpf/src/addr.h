/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* addr.h - addresses of both families in 16 bytes. */
#ifndef MST_ADDR_H
#define MST_ADDR_H

#include "bpf.h"
#include "mst.h"

#define V4_MAPPED bpf_htonl(0x0000ffff)

static __always_inline struct mst_addr addr4(__be32 ip)
{
	struct mst_addr a = {.w = {0, 0, V4_MAPPED, ip}};

	return a;
}

static __always_inline bool addr_eq(const struct mst_addr *a,
				    const struct mst_addr *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] &&
	       a->w[3] == b->w[3];
}

static __always_inline bool addr_is4(const struct mst_addr *a)
{
	return !a->w[0] && !a->w[1] && a->w[2] == V4_MAPPED;
}

static __always_inline bool addr_zero(const struct mst_addr *a)
{
	return !a->w[0] && !a->w[1] && !a->w[2] && !a->w[3];
}

static __always_inline bool addr_loopback(const struct mst_addr *a)
{
	if (addr_is4(a))
		return (a->w[3] & bpf_htonl(0xff000000)) ==
		       bpf_htonl(0x7f000000);
	return !a->w[0] && !a->w[1] && !a->w[2] && a->w[3] == bpf_htonl(1);
}

/* An address that is never routed: link-local of IPv6, or none. */
static __always_inline bool on_link_only(const struct mst_addr *a)
{
	if (addr_is4(a))
		return !a->w[3];
	return (a->w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000) ||
	       addr_zero(a);
}

static __always_inline bool addr_in(const struct mst_addr *a,
				    const struct mst_addr *net,
				    const struct mst_addr *mask)
{
	return mask->w[0] && (a->w[0] & mask->w[0]) == net->w[0] &&
	       (a->w[1] & mask->w[1]) == net->w[1] &&
	       (a->w[2] & mask->w[2]) == net->w[2] &&
	       (a->w[3] & mask->w[3]) == net->w[3];
}

#endif /* MST_ADDR_H */
