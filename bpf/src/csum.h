/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* csum.h - checksums of the Internet (RFC 1071). */
#ifndef MST_CSUM_H
#define MST_CSUM_H

#include "bpf.h"

/* The checksum of what adds up to sum. */
static __always_inline __u16 fold(__s64 sum)
{
	__u32 c = (__u32)sum;

	c = (c & 0xffff) + (c >> 16);
	c = (c & 0xffff) + (c >> 16);
	return (__u16)~c;
}

/* What a word adds to a sum when it becomes another; 33 bits at most. */
static __always_inline __u64 csum_change(__be32 from, __be32 to)
{
	return (__u64)(__u32)~from + to;
}

/* The 64 bits of a sum in 32. */
static __always_inline __u32 csum_short(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (__u32)sum + (__u32)(sum >> 32);
}

/* The checksum csum after the sum that it covers has changed by diff. */
static __always_inline __u16 csum_after(__u16 csum, __u32 diff)
{
	return fold(csum_short((__u64)(__u16)~csum + diff));
}

#endif /* MST_CSUM_H */
