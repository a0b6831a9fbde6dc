// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/mustang-net/mustang/state"
)

// AddressOptions says what an address is for.
type AddressOptions struct {
	// Gateway asks for the pool's gateway.
	Gateway bool
	// Owner says who holds the address, for listings and errors: a container's name, a CNI attachment.
	// Empty means unknown.
	Owner string
	// Replay says that the caller may hold the address already and wants it confirmed: a lease of the
	// same Owner is then returned instead of refused. Only for owners that are never used twice, such
	// as a CNI attachment; a container's name is free again after `docker rename`, with its former
	// container still running.
	Replay bool
}

// Lease is an address in use.
type Lease struct {
	PoolID  string
	Address netip.Prefix // the address with the length of its subnet
	Gateway bool
	Owner   string
	Since   time.Time
	BootID  string // of the boot in which it was handed out
}

// freed is an address in quarantine.
type freed struct {
	addr netip.Addr
	at   time.Time
}

func (p *pool) describeLease(addr netip.Addr, r leaseRecord) Lease {
	return Lease{
		PoolID: p.id, Address: netip.PrefixFrom(addr, p.Subnet.Bits()),
		Gateway: r.Gateway, Owner: r.Owner, Since: r.Since, BootID: r.BootID,
	}
}

// holder is how errors name who has a lease.
func (r leaseRecord) holder() string {
	who := "no one by name (an auxiliary address, or a container of an older engine)"
	switch {
	case r.Gateway:
		who = "the gateway"
	case r.Owner != "":
		who = r.Owner
	}
	return who + " since " + r.Since.Format(time.RFC3339)
}

func (p *pool) setLease(addr netip.Addr, r leaseRecord) {
	p.leases[addr] = r
	p.taken.add(span{addr, addr})
}

// RequestAddress leases an address. [IPAM.ReleaseAddress] undoes it.
//
// The zero addr means any: the next free one after the last that was handed out, inside the SubPool,
// and not in quarantine unless nothing else is left, oldest first then. The gateway gets the lowest one.
// A given addr may lie anywhere in the subnet and may be in quarantine.
//
// A given addr that is leased is refused, even to the same Owner, unless
//   - both are for the gateway,
//   - the request is a Replay of the same Owner, or
//   - the lease has an Owner and is of an earlier boot: no container survives that, so it is a leak.
//
// A request for the gateway without addr gives the gateway that the pool already has.
//
// Errors: [ErrNoPool], [ErrInvalid], [ErrTaken], [ErrExhausted], and those of the store.
func (i *IPAM) RequestAddress(poolID string, addr netip.Addr, opts AddressOptions) (netip.Prefix, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	p := i.pools[poolID]
	if p == nil {
		return netip.Prefix{}, fmt.Errorf("request address: %w", noPool(poolID))
	}
	addr = addr.Unmap()
	clock := i.opts.Now()
	now := clock.UTC()
	p.endQuarantine(now, i.opts.Quarantine)
	if held, found := p.held(addr, opts); found {
		return netip.PrefixFrom(held, p.Subnet.Bits()), nil
	}
	cursor := p.Cursor
	var err error
	if addr.IsValid() {
		err = p.checkExplicit(addr, i.opts.BootID)
	} else if addr, err = p.pick(opts.Gateway); !opts.Gateway {
		cursor = addr
	}
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("request address in pool %s: %w", p.id, err)
	}
	r := leaseRecord{Gateway: opts.Gateway, Owner: opts.Owner, Since: now, BootID: i.opts.BootID, from: clock}
	if err := i.storeLease(p, addr, r, cursor); err != nil {
		return netip.Prefix{}, fmt.Errorf("request address %s in pool %s: %w", addr, p.id, err)
	}
	return netip.PrefixFrom(addr, p.Subnet.Bits()), nil
}

// ReleaseAddress ends a lease and puts its address in quarantine. An address without a lease, or a
// pool that does not exist, is no error. Errors are the store's.
func (i *IPAM) ReleaseAddress(poolID string, addr netip.Addr) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	p := i.pools[poolID]
	if p == nil {
		return nil
	}
	if err := i.release(p, addr.Unmap()); err != nil {
		return fmt.Errorf("release address %s of pool %s: %w", addr, poolID, err)
	}
	return nil
}

// ReleaseOwner ends every lease that an owner has in a pool, in one transaction: for CNI's DEL, which
// may not know the address. None is no error; an empty owner is [ErrInvalid].
func (i *IPAM) ReleaseOwner(poolID, owner string) error {
	if owner == "" {
		return fmt.Errorf("release addresses of pool %s: %w: no owner given", poolID, ErrInvalid)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	p := i.pools[poolID]
	if p == nil {
		return nil
	}
	var addrs []netip.Addr
	for addr, r := range p.leases {
		if r.Owner == owner {
			addrs = append(addrs, addr)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	if err := i.release(p, addrs...); err != nil {
		return fmt.Errorf("release addresses of %s in pool %s: %w", owner, poolID, err)
	}
	return nil
}

// held returns the address that the request already has.
func (p *pool) held(addr netip.Addr, opts AddressOptions) (netip.Addr, bool) {
	if addr.IsValid() {
		r, found := p.leases[addr]
		return addr, found && r.Gateway == opts.Gateway &&
			(opts.Gateway || opts.Replay && opts.Owner != "" && r.Owner == opts.Owner)
	}
	if opts.Gateway {
		for addr, r := range p.leases {
			if r.Gateway {
				return addr, true
			}
		}
	}
	return netip.Addr{}, false
}

// checkExplicit tells why addr cannot be leased.
func (p *pool) checkExplicit(addr netip.Addr, bootID string) error {
	if addr.Zone() != "" || !p.Subnet.Contains(addr) {
		return fmt.Errorf("address %s: %w: it is outside the subnet %s: choose one in it", addr, ErrInvalid, p.Subnet)
	}
	if !assignable(p.Subnet).contains(addr) {
		return fmt.Errorf("address %s: %w: it is the network, broadcast or anycast address of %s: choose another", addr, ErrInvalid, p.Subnet)
	}
	r, found := p.leases[addr]
	if !found {
		return nil
	}
	leaked := !r.Gateway && r.Owner != "" && r.BootID != "" && bootID != "" && r.BootID != bootID
	if leaked {
		return nil
	}
	return fmt.Errorf("%w: %s is held by %s: choose another address, or end what has it", ErrTaken, addr, r.holder())
}

// full tells whether pick would find nothing.
func (p *pool) full() bool {
	_, found := p.taken.firstFree(p.auto.first, p.auto)
	return !found && !slices.ContainsFunc(p.quarantine, func(q freed) bool { return p.auto.contains(q.addr) })
}

// pick chooses an address for a request that names none.
func (p *pool) pick(gateway bool) (netip.Addr, error) {
	from := p.auto.first
	if !gateway && p.Cursor.IsValid() {
		from = p.Cursor.Next() // the zero Addr after the last address of all: from the start again
	}
	if addr, found := p.taken.firstFree(from, p.auto); found {
		return addr, nil
	}
	if addr, found := p.taken.firstFree(p.auto.first, p.auto); found {
		return addr, nil
	}
	// A small pool must not refuse a restart because its addresses rest.
	for _, q := range p.quarantine {
		if p.auto.contains(q.addr) {
			return q.addr, nil
		}
	}
	inside := 0
	for addr := range p.leases {
		if p.auto.contains(addr) {
			inside++
		}
	}
	return netip.Addr{}, fmt.Errorf("%w: all %d addresses from %s to %s are leased (%d leases in the subnet): "+
		"remove unused containers, or use a network with a larger subnet", ErrExhausted, inside, p.auto.first, p.auto.last, len(p.leases))
}

// storeLease writes the lease, in the state and then in memory.
func (i *IPAM) storeLease(p *pool, addr netip.Addr, r leaseRecord, cursor netip.Addr) error {
	err := i.store.Update(func(tx state.Tx) error {
		if err := p.sweep(tx); err != nil {
			return err
		}
		if err := tx.Delete(bucketQuarantine, addrKey(p.id, addr)); err != nil {
			return err
		}
		if cursor != p.Cursor {
			moved := p.poolRecord
			moved.Cursor = cursor
			if err := tx.Put(bucketPools, p.id, moved); err != nil {
				return err
			}
		}
		return tx.Put(bucketLeases, addrKey(p.id, addr), r)
	})
	if err != nil {
		return err
	}
	p.Cursor, p.expired = cursor, nil
	p.quarantine = slices.DeleteFunc(p.quarantine, func(q freed) bool { return q.addr == addr })
	p.setLease(addr, r)
	return nil
}

// release ends the leases of addrs, in the state and then in memory; addresses without one are skipped.
func (i *IPAM) release(p *pool, addrs ...netip.Addr) error {
	addrs = slices.DeleteFunc(addrs, func(a netip.Addr) bool { _, found := p.leases[a]; return !found })
	if len(addrs) == 0 {
		return nil
	}
	now := i.opts.Now().UTC()
	p.endQuarantine(now, i.opts.Quarantine)
	err := i.store.Update(func(tx state.Tx) error {
		if err := p.sweep(tx); err != nil {
			return err
		}
		for _, addr := range addrs {
			if err := tx.Delete(bucketLeases, addrKey(p.id, addr)); err != nil {
				return err
			}
			if i.opts.Quarantine < 0 {
				continue
			}
			if err := tx.Put(bucketQuarantine, addrKey(p.id, addr), quarantineRecord{now}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	p.expired = nil
	for _, addr := range addrs {
		delete(p.leases, addr)
		if i.opts.Quarantine < 0 {
			p.taken.remove(addr)
		} else {
			p.quarantine = append(p.quarantine, freed{addr, now})
		}
	}
	return nil
}

// endQuarantine frees the addresses whose time is over. Their records stay until the next change of
// the pool writes anyway.
func (p *pool) endQuarantine(now time.Time, length time.Duration) {
	for len(p.quarantine) > 0 {
		q := p.quarantine[0]
		// A clock that was set back must not keep an address for longer than the quarantine.
		if now.Before(q.at.Add(length)) && !now.Before(q.at) {
			return
		}
		p.quarantine = p.quarantine[1:]
		p.taken.remove(q.addr)
		p.expired = append(p.expired, q.addr)
	}
}

// sweep deletes the records of quarantines that are over.
func (p *pool) sweep(tx state.Tx) error {
	for _, addr := range p.expired {
		if err := tx.Delete(bucketQuarantine, addrKey(p.id, addr)); err != nil {
			return err
		}
	}
	return nil
}
