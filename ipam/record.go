// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/mustang-net/mustang/state"
)

// The buckets of the state that are ours. A lease and a quarantine have the key POOLID|ADDRESS.
const (
	bucketPools      = "ipam.pools"
	bucketLeases     = "ipam.leases"
	bucketQuarantine = "ipam.quarantine"
)

// poolRecord is a pool as it is stored, under its id.
type poolRecord struct {
	Space   string       `json:"space"`
	Subnet  netip.Prefix `json:"subnet"`
	SubPool netip.Prefix `json:"sub_pool"`
	First   netip.Addr   `json:"first,omitzero"`
	Last    netip.Addr   `json:"last,omitzero"`
	// Automatic says that the request named no subnet.
	Automatic bool      `json:"automatic,omitempty"`
	Owner     string    `json:"owner,omitempty"`
	Since     time.Time `json:"since"`
	BootID    string    `json:"boot_id,omitempty"`
	// Cursor is the address that automatic allocation handed out last. It is stored because a CNI
	// call is a process of its own: next-fit would otherwise be first-fit there.
	Cursor netip.Addr `json:"cursor"`
}

// leaseRecord is a lease as it is stored.
type leaseRecord struct {
	Gateway bool      `json:"gateway,omitempty"`
	Owner   string    `json:"owner,omitempty"`
	Since   time.Time `json:"since"`
	BootID  string    `json:"boot_id,omitempty"`

	from time.Time // Since by a clock that nobody sets, while this process runs
}

// quarantineRecord is a freed address that automatic allocation leaves alone for a while.
type quarantineRecord struct {
	Freed time.Time `json:"freed"`
}

func addrKey(poolID string, addr netip.Addr) string { return poolID + "|" + addr.String() }

// load reads everything. Orphans cannot come from a crash, only from a bug or a foreign hand: it
// refuses them, for guessing might give an address to two containers.
func (i *IPAM) load(tx state.Tx) error {
	if err := tx.Each(bucketPools, i.loadPool); err != nil {
		return err
	}
	if err := tx.Each(bucketLeases, func(key string, decode func(any) error) error {
		var r leaseRecord
		p, addr, err := i.loadAddr(bucketLeases, key, decode, &r)
		if err == nil {
			now := i.opts.Now()
			r.from = now.Add(-max(0, now.Sub(r.Since)))
			p.setLease(addr, r)
		}
		return err
	}); err != nil {
		return err
	}
	if err := tx.Each(bucketQuarantine, func(key string, decode func(any) error) error {
		var r quarantineRecord
		p, addr, err := i.loadAddr(bucketQuarantine, key, decode, &r)
		if err == nil {
			p.quarantine = append(p.quarantine, freed{addr, r.Freed})
			p.taken.add(span{addr, addr})
		}
		return err
	}); err != nil {
		return err
	}
	for _, p := range i.pools {
		slices.SortFunc(p.quarantine, func(a, b freed) int { return a.at.Compare(b.at) })
	}
	return nil
}

func (i *IPAM) loadPool(id string, decode func(any) error) error {
	var r poolRecord
	if err := decode(&r); err != nil {
		return err
	}
	if !r.Subnet.IsValid() || id != poolID(r.Space, r.Subnet) {
		return fmt.Errorf("record %s/%s is not the pool that its key says", bucketPools, id)
	}
	i.pools[id] = newPool(id, r)
	return nil
}

func (i *IPAM) loadAddr(bucket, key string, decode func(any) error, r any) (*pool, netip.Addr, error) {
	id, text, _ := strings.Cut(key, "|")
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return nil, addr, fmt.Errorf("record %s/%s: %w", bucket, key, err)
	}
	p := i.pools[id]
	if p == nil || !p.Subnet.Contains(addr) {
		return nil, addr, fmt.Errorf("record %s/%s belongs to no pool", bucket, key)
	}
	return p, addr, decode(r)
}
