// SPDX-License-Identifier: Apache-2.0

// Package ipam hands out pools (subnets) and leases (addresses in them), and remembers them in the state.
//
// Every change is one transaction of the state: after a kill at any moment, [New] finds exactly what
// callers were told. Docker's IPAM protocol and CNI are built on it by others; no wire format is here.
package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/mustang-net/mustang/state"
)

// Options configures [New]. The zero value is usable.
type Options struct {
	// DefaultPools are cut into blocks for requests that name no pool; earlier ones are used up first.
	// Empty means 10.201.0.0/16 and fd6d:7374:c0de::/48.
	DefaultPools []netip.Prefix
	// DefaultSize4 and DefaultSize6 are the blocks' prefix lengths in bits; 0 means 24 and 64.
	DefaultSize4, DefaultSize6 int
	// HostRoutes returns the destinations of the host's routes, which no pool may overlap; nil means
	// none. Default routes, also in the form of two halves, are ignored. It is called once per request
	// of a pool, without a lock held.
	HostRoutes func() ([]netip.Prefix, error)
	// Reserved are ranges that no pool may overlap, whatever the request says: the service pools.
	Reserved []netip.Prefix
	// BootID tells leases of this boot of the host from older ones; any text, usually
	// /proc/sys/kernel/random/boot_id. Empty switches off what depends on it.
	BootID string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Quarantine is how long a freed address is kept back from automatic allocation, so that peers
	// and ARP caches forget its last holder. 0 means 10 s, a negative value none.
	Quarantine time.Duration
}

func (o *Options) setDefaults() {
	if len(o.DefaultPools) == 0 {
		o.DefaultPools = []netip.Prefix{
			netip.MustParsePrefix("10.201.0.0/16"),
			netip.MustParsePrefix("fd6d:7374:c0de::/48"),
		}
	}
	if o.DefaultSize4 == 0 {
		o.DefaultSize4 = 24
	}
	if o.DefaultSize6 == 0 {
		o.DefaultSize6 = 64
	}
	if o.HostRoutes == nil {
		o.HostRoutes = func() ([]netip.Prefix, error) { return nil, nil }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Quarantine == 0 {
		o.Quarantine = 10 * time.Second
	}
}

func (o *Options) validate() error {
	if o.DefaultSize4 < 1 || o.DefaultSize4 > 32 || o.DefaultSize6 < 1 || o.DefaultSize6 > 128 {
		return fmt.Errorf("default block sizes /%d and /%d: %w: want 1 to 32 and 1 to 128 bits",
			o.DefaultSize4, o.DefaultSize6, ErrInvalid)
	}
	for _, p := range o.DefaultPools {
		if !p.IsValid() || p != p.Masked() {
			return fmt.Errorf("default pool %s: %w: want a prefix without host bits", p, ErrInvalid)
		}
		if size := o.blockSize(p); p.Bits() > size {
			return fmt.Errorf("default pool %s: %w: it is smaller than one block of /%d: give a larger one", p, ErrInvalid, size)
		}
		if bad, found := overlapping(p, unusable); found {
			return fmt.Errorf("default pool %s: %w: no interface can have an address of %s: choose another", p, ErrInvalid, bad)
		}
	}
	for _, p := range o.Reserved {
		if !p.IsValid() {
			return fmt.Errorf("reserved range %s: %w", p, ErrInvalid)
		}
	}
	return nil
}

// blockSize is the length in bits of the blocks that p is cut into.
func (o *Options) blockSize(p netip.Prefix) int {
	if p.Addr().Is4() {
		return o.DefaultSize4
	}
	return o.DefaultSize6
}

// IPAM is the pools and leases of one host. It is safe for concurrent use. There must be one IPAM per
// store, for it answers from memory.
type IPAM struct {
	store state.Store
	opts  Options

	mu    sync.RWMutex
	pools map[string]*pool

	collecting sync.Mutex
	missing    map[string]time.Time // of CollectPools: when pools were requested that nobody had
}

// New loads pools and leases from the store. Errors are those of the store, a record that makes no
// sense, or options that do not ([ErrInvalid]).
func New(store state.Store, opts Options) (*IPAM, error) {
	opts.setDefaults()
	if err := opts.validate(); err != nil {
		return nil, fmt.Errorf("ipam options: %w", err)
	}
	i := &IPAM{store: store, opts: opts, pools: map[string]*pool{}}
	if err := store.View(i.load); err != nil {
		return nil, fmt.Errorf("load pools and leases: %w", err)
	}
	return i, nil
}

// Pools lists all pools in the order of their subnets.
func (i *IPAM) Pools() []Pool {
	i.mu.RLock()
	defer i.mu.RUnlock()
	pools := make([]Pool, 0, len(i.pools))
	for _, p := range i.pools {
		pools = append(pools, p.describe())
	}
	slices.SortFunc(pools, func(a, b Pool) int { return a.Subnet.Addr().Compare(b.Subnet.Addr()) })
	return pools
}

// Leases lists the leases of a pool in the order of their addresses; none if there is no such pool.
func (i *IPAM) Leases(poolID string) []Lease {
	i.mu.RLock()
	defer i.mu.RUnlock()
	p := i.pools[poolID]
	if p == nil {
		return nil
	}
	leases := make([]Lease, 0, len(p.leases))
	for addr, r := range p.leases {
		leases = append(leases, p.describeLease(addr, r))
	}
	slices.SortFunc(leases, func(a, b Lease) int { return a.Address.Addr().Compare(b.Address.Addr()) })
	return leases
}

// Lookup returns the lease of an address, whichever pool it is in.
func (i *IPAM) Lookup(addr netip.Addr) (Lease, bool) {
	addr = addr.Unmap()
	i.mu.RLock()
	defer i.mu.RUnlock()
	for _, p := range i.pools {
		if p.Subnet.Contains(addr) {
			r, found := p.leases[addr]
			if !found {
				return Lease{}, false
			}
			return p.describeLease(addr, r), true
		}
	}
	return Lease{}, false
}

func noPool(id string) error {
	return fmt.Errorf("pool %q: %w: remove the network (docker network rm) and make it anew", id, ErrNoPool)
}
