// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"net/netip"
	"regexp"
	"sync"
	"time"

	"github.com/mustang-net/mustang/state"
)

// DefaultSpace is the address space of requests that name none. Spaces only label pools: a host has
// one routing table, so pools of different spaces must not overlap either.
const DefaultSpace = "mustang-local"

// A space is part of pool ids and of keys in the state, so it has no separators of either.
var spaceName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`) })

// Request asks for a pool.
type Request struct {
	// Space is the address space; empty means [DefaultSpace].
	Space string
	// Pool is the subnet as CIDR without host bits; empty means the next free default block.
	Pool string
	// SubPool is the part of Pool to allocate from automatically, as CIDR; empty means all of it.
	SubPool string
	// First and Last bound the same by addresses, both included; the zero Addr means Pool's.
	First, Last netip.Addr
	// IPv6 is the family wanted. It must agree with Pool.
	IPv6 bool
	// Owner says who the pool is for, if the caller has a lasting name for that, such as a CNI network.
	// Repeating a request with the same owner gives the same pool again; without one it is refused.
	Owner string
	// IgnoreHostRoutes allows an explicit Pool that overlaps a route of the host: for macvlan and
	// ipvlan networks on their parent's LAN, and for readopting a pool whose own route is in place.
	IgnoreHostRoutes bool
}

// Pool is a subnet that belongs to one network.
type Pool struct {
	// ID names the pool in later calls. It is made of space and subnet alone, so that it is the same
	// when a pool is requested anew after the state was lost.
	ID      string
	Space   string
	Subnet  netip.Prefix
	SubPool netip.Prefix // where automatic addresses come from; the zero Prefix means all of Subnet
	First   netip.Addr   // and from which one on, unless it is zero
	Last    netip.Addr   // and to which one, unless it is zero
	Full    bool         // no address is left for who names none
	Owner   string
	Since   time.Time
	BootID  string // of the boot in which it was requested
	Leases  int    // how many addresses are leased, the gateway's included
}

// Used is the part of the addresses which are given to who names none that are leased, from 0 to 1.
func (p Pool) Used() float64 {
	from := p.SubPool
	if !from.IsValid() {
		from = p.Subnet
	}
	return min(float64(p.Leases)/automatic(p.Subnet, from, p.First, p.Last).size(), 1)
}

// automatic is where addresses are taken from that nobody asks for: what the prefix from and the bounds leave of a subnet.
func automatic(subnet, from netip.Prefix, first, last netip.Addr) span {
	s := assignable(subnet).intersect(span{from.Addr(), lastAddr(from)})
	if first.IsValid() {
		s = s.intersect(span{first, s.last})
	}
	if last.IsValid() {
		s = s.intersect(span{s.first, last})
	}
	return s
}

func poolID(space string, subnet netip.Prefix) string { return space + "/" + subnet.String() }

// pool is a Pool with its addresses. The mutex of IPAM guards it.
type pool struct {
	id string
	poolRecord
	auto       span // what automatic allocation may hand out
	leases     map[netip.Addr]leaseRecord
	quarantine []freed      // oldest first
	expired    []netip.Addr // out of quarantine, but not yet deleted from the state
	taken      spans        // leased or in quarantine
}

func newPool(id string, r poolRecord) *pool {
	from := r.SubPool
	if !from.IsValid() {
		from = r.Subnet
	}
	return &pool{id: id, poolRecord: r, auto: automatic(r.Subnet, from, r.First, r.Last), leases: map[netip.Addr]leaseRecord{}}
}

func (p *pool) describe() Pool {
	return Pool{
		ID: p.id, Space: p.Space, Subnet: p.Subnet, SubPool: p.SubPool, First: p.First, Last: p.Last, Full: p.full(),
		Owner: p.Owner, Since: p.Since, BootID: p.BootID, Leases: len(p.leases),
	}
}

// String is how errors name a pool, with what tells an operator which network it belongs to.
func (p *pool) String() string {
	owner := ""
	if p.Owner != "" {
		owner = " of " + p.Owner
	}
	return fmt.Sprintf("pool %s%s (requested %s, %d leases)", p.id, owner, p.Since.Format(time.RFC3339), len(p.leases))
}

// wanted is how errors name the part of the subnet that was asked for.
func (p *pool) wanted() string {
	switch {
	case p.First.IsValid() && p.Last.IsValid():
		return "from " + p.First.String() + " to " + p.Last.String()
	case p.First.IsValid():
		return "from " + p.First.String()
	case p.Last.IsValid():
		return "to " + p.Last.String()
	}
	return p.SubPool.String()
}

// RequestPool makes a pool. [IPAM.ReleasePool] undoes it.
//
// The same pool requested twice is refused, unless both requests have the same Owner: Docker names no
// owner, asks for the pools of a stored network again only from drivers that want such a replay, and
// two Docker networks must not share a subnet. A default block is never given twice, so the engine,
// which holds on to a block it finds unfit and asks for another, comes to an end.
//
// Errors: [ErrInvalid], [ErrOverlap], [ErrExhausted] when no default block is free, and those of the
// store and of Options.HostRoutes.
func (i *IPAM) RequestPool(req Request) (Pool, error) {
	if req.Space == "" {
		req.Space = DefaultSpace
	}
	subnet, subPool, err := parseRequest(req)
	if err != nil {
		return Pool{}, fmt.Errorf("request pool: %w", err)
	}
	var routes []netip.Prefix
	if !req.IgnoreHostRoutes || !subnet.IsValid() {
		if routes, err = i.hostRoutes(); err != nil {
			return Pool{}, fmt.Errorf("request pool: %w", err)
		}
	}

	i.mu.Lock()
	defer i.mu.Unlock()
	if p := i.replayed(req, subnet, subPool); p != nil {
		return p.describe(), nil
	}
	if subnet.IsValid() {
		err = i.checkOverlap(subnet, routes)
	} else {
		subnet, err = i.freeBlock(req.IPv6, routes)
	}
	if err != nil {
		return Pool{}, fmt.Errorf("request pool: %w", err)
	}
	p := newPool(poolID(req.Space, subnet), poolRecord{
		Space: req.Space, Subnet: subnet, SubPool: subPool, First: req.First, Last: req.Last, Automatic: req.Pool == "",
		Owner: req.Owner, Since: i.opts.Now().UTC(), BootID: i.opts.BootID,
	})
	if p.auto.empty() {
		return Pool{}, fmt.Errorf("request pool: sub-pool %s: %w: all its addresses are network or broadcast addresses of %s: choose a larger one",
			p.wanted(), ErrInvalid, subnet)
	}
	err = i.store.Update(func(tx state.Tx) error { return tx.Put(bucketPools, p.id, p.poolRecord) })
	if err != nil {
		return Pool{}, fmt.Errorf("request pool %s: %w", p.id, err)
	}
	i.pools[p.id] = p
	return p.describe(), nil
}

// ReleasePool forgets a pool with all of its leases. One that does not exist is no error: the caller
// wanted it gone. Errors are the store's.
func (i *IPAM) ReleasePool(id string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	p := i.pools[id]
	if p == nil {
		return nil
	}
	err := i.store.Update(func(tx state.Tx) error {
		for addr := range p.leases {
			if err := tx.Delete(bucketLeases, addrKey(id, addr)); err != nil {
				return err
			}
		}
		for _, q := range p.quarantine {
			if err := tx.Delete(bucketQuarantine, addrKey(id, q.addr)); err != nil {
				return err
			}
		}
		if err := p.sweep(tx); err != nil {
			return err
		}
		return tx.Delete(bucketPools, id)
	})
	if err != nil {
		return fmt.Errorf("release pool %s: %w", id, err)
	}
	delete(i.pools, id)
	return nil
}

// parseRequest checks what can be checked without knowing other pools. The subnet is the zero Prefix
// if the request names none.
func parseRequest(req Request) (subnet, subPool netip.Prefix, err error) {
	if !spaceName().MatchString(req.Space) {
		return subnet, subPool, fmt.Errorf("address space %q: %w: want up to 64 of A-Z a-z 0-9 . _ -", req.Space, ErrInvalid)
	}
	if req.Pool == "" {
		if req.SubPool != "" || req.First.IsValid() || req.Last.IsValid() {
			return subnet, subPool, fmt.Errorf("sub-pool %s: %w: a sub-pool needs its pool, give the subnet too", req.SubPool, ErrInvalid)
		}
		return subnet, subPool, nil
	}
	if subnet, err = parsePrefix("pool", req.Pool); err != nil {
		return subnet, subPool, err
	}
	if subnet.Addr().Is6() != req.IPv6 {
		return subnet, subPool, fmt.Errorf("pool %s: %w: its family is not the one asked for: give a subnet of that family", subnet, ErrInvalid)
	}
	if bad, found := overlapping(subnet, unusable); found {
		return subnet, subPool, fmt.Errorf("pool %s: %w: no interface can have an address of %s: choose another", subnet, ErrInvalid, bad)
	}
	for _, a := range []netip.Addr{req.First, req.Last} {
		if a.IsValid() && !subnet.Contains(a) {
			return subnet, subPool, fmt.Errorf("range to allocate from: %w: %s is not inside of the subnet %s: choose one in it", ErrInvalid, a, subnet)
		}
	}
	if req.Last.IsValid() && req.Last.Less(req.First) {
		return subnet, subPool, fmt.Errorf("range to allocate from: %w: it ends at %s, before it begins at %s: give the lower address first", ErrInvalid, req.Last, req.First)
	}
	if req.SubPool == "" {
		return subnet, subPool, nil
	}
	if subPool, err = parsePrefix("sub-pool", req.SubPool); err != nil {
		return subnet, subPool, err
	}
	if subPool.Bits() < subnet.Bits() || !subnet.Contains(subPool.Addr()) {
		return subnet, subPool, fmt.Errorf("sub-pool %s: %w: it is not inside its pool %s: choose an --ip-range in it", subPool, ErrInvalid, subnet)
	}
	return subnet, subPool, nil
}

// replayed returns the pool that an owner already has by the same request.
func (i *IPAM) replayed(req Request, subnet, subPool netip.Prefix) *pool {
	if req.Owner == "" {
		return nil
	}
	for _, p := range i.pools {
		if p.Owner == req.Owner && p.Space == req.Space && p.SubPool == subPool && p.First == req.First && p.Last == req.Last &&
			(p.Subnet == subnet || !subnet.IsValid() && p.Automatic && p.Subnet.Addr().Is6() == req.IPv6) {
			return p
		}
	}
	return nil
}
