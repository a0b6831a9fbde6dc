// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"net/netip"
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

// Unused lists what Collect would release.
func (i *IPAM) Unused(subnet netip.Prefix, inUse map[netip.Addr]bool, grace time.Duration) (out []netip.Addr) {
	i.unused(subnet, inUse, grace, func(_ string, a netip.Addr) { out = append(out, a) })
	return out
}

func (i *IPAM) unused(subnet netip.Prefix, inUse map[netip.Addr]bool, grace time.Duration, found func(pool string, a netip.Addr)) {
	for _, p := range i.Pools() {
		if p.Subnet != subnet.Masked() {
			continue
		}
		for _, l := range i.Leases(p.ID) {
			if !l.Gateway && !inUse[l.Address.Addr()] && i.opts.Now().Sub(l.Since) >= grace {
				found(p.ID, l.Address.Addr())
			}
		}
	}
}
