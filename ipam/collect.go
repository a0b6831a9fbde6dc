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
	for _, p := range i.Pools() {
		if p.Subnet != subnet.Masked() {
			continue
		}
		for _, l := range i.Leases(p.ID) {
			if l.Gateway || inUse[l.Address.Addr()] || i.opts.Now().Sub(l.Since) < grace {
				continue
			}
			if e := i.ReleaseAddress(p.ID, l.Address.Addr()); e != nil {
				err = errors.Join(err, e)
				continue
			}
			released = append(released, l.Address.Addr())
		}
	}
	return released, err
}
