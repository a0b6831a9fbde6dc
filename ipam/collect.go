// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"time"
)

// Collect releases the leases of the pool with this subnet that are older than grace and not in use:
// an engine forgets addresses without releasing them when nobody answers. Gateways stay. A subnet
// without a pool is no error, since an engine's own IPAM may have it.
func (i *IPAM) Collect(subnet netip.Prefix, inUse map[netip.Addr]bool, grace time.Duration) (released []netip.Addr, err error) {
	i.unused(subnet, inUse, grace, func(pool string, a netip.Addr) {
		if e := i.ReleaseAddress(pool, a); e != nil {
			err = errors.Join(err, e)
			return
		}
		released = append(released, a)
	})
	return released, err
}

// CollectPools releases the pools without an owner that none of the subnets is: an engine tells of a network's end once, and its network is gone
// whether or not somebody has heard. A pool goes that is missing in two calls in a row, so callers leave some time in between: it is there before
// its network is.
func (i *IPAM) CollectPools(subnets map[netip.Prefix]bool) (released []netip.Prefix, err error) {
	i.collecting.Lock()
	defer i.collecting.Unlock()
	missing := map[string]time.Time{}
	for _, p := range i.Pools() {
		if p.Owner != "" || subnets[p.Subnet] {
			continue
		}
		if since, twice := i.missing[p.ID]; !twice || !since.Equal(p.Since) {
			missing[p.ID] = p.Since
		} else if e := i.ReleasePool(p.ID); e != nil {
			missing[p.ID] = p.Since
			err = errors.Join(err, e)
		} else {
			released = append(released, p.Subnet)
		}
	}
	i.missing = missing
	return released, err
}

// Unused lists what Collect would release.
func (i *IPAM) Unused(subnet netip.Prefix, inUse map[netip.Addr]bool, grace time.Duration) (out []netip.Addr) {
	i.unused(subnet, inUse, grace, func(_ string, a netip.Addr) { out = append(out, a) })
	return out
}

func (i *IPAM) unused(subnet netip.Prefix, inUse map[netip.Addr]bool, grace time.Duration, found func(pool string, a netip.Addr)) {
	type place struct {
		pool string
		addr netip.Addr
	}
	var places []place
	i.mu.RLock()
	now := i.opts.Now()
	for _, p := range i.pools {
		if p.Subnet != subnet.Masked() {
			continue
		}
		for addr, r := range p.leases {
			if !r.Gateway && !inUse[addr] && now.Sub(r.from) >= grace {
				places = append(places, place{p.id, addr})
			}
		}
	}
	i.mu.RUnlock()
	slices.SortFunc(places, func(a, b place) int { return cmp.Or(cmp.Compare(a.pool, b.pool), a.addr.Compare(b.addr)) })
	for _, l := range places {
		found(l.pool, l.addr)
	}
}
