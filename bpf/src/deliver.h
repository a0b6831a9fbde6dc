/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* deliver.h - into the sandbox of an endpoint. */
#ifndef MST_DELIVER_H
#define MST_DELIVER_H

#include "answer.h"

/* Can a packet be handed to dst here? A slave's sandbox has no way to others.
 */
static __always_inline bool reaches(const struct mst_endpoint *dst, __u32 place)
{
	return (dst->flags & MST_EP_REDIRECT || dst->via) &&
	       place != PLACE_SANDBOX;
}

/*
 * Straight into the destination's sandbox, past its host end; from a netkit
 * device, where bpf_redirect_peer() is not to be had, through the end; to a
 * slave, through the host's slave beside it.
 */
static __always_inline int deliver(struct __sk_buff *skb, __u32 place,
				   const struct mst_endpoint *dst)
{
	__u8 macs[12];

	__builtin_memcpy(macs, dst->mac, 6);
	__builtin_memcpy(macs + 6, dst->host_mac, 6);
	if (bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0))
		return TC_PASS;
	if (dst->via)
		return send_by(skb, dst->via);
	if (place == PLACE_NETKIT) /* where it has come in nowhere yet */
		return send_by(skb, dst->ifindex);
	return bpf_redirect_peer(dst->ifindex, 0);
}

#endif /* MST_DELIVER_H */
