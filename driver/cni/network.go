// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/mustang-net/mustang/driver"
	"github.com/mustang-net/mustang/ipam"
	"github.com/mustang-net/mustang/state"
)

// network is one that was asked for. The mutex of Manager guards it.
type network struct {
	Network
	subnets []driver.Subnet
	made    bool // by this process, which need not look again
	users   *int // who are attaching to it
	// await is until when a network that was made for a configuration is kept although there is none yet.
	await time.Time
}

// awaitConf is how long whoever asked for a network is given to write its configuration.
const awaitConf = 10 * time.Second

func (n *network) id() string { return NetworkID(n.Name) }

// pools are its subnets, for a person.
func (n *network) pools() string {
	var texts []string
	for _, s := range n.subnets {
		texts = append(texts, s.Pool.String())
	}
	return strings.Join(texts, ", ")
}

// release undoes the hold that ensure gives.
func (n *network) release(m *Manager) {
	m.mu.Lock()
	defer m.mu.Unlock()
	*n.users--
}

func owner(network string) string { return "cni:" + network }

// poolsOf are the pools of a network.
func (m *Manager) poolsOf(network string) []ipam.Pool {
	return slices.DeleteFunc(m.Pools.Pools(), func(p ipam.Pool) bool { return p.Owner != owner(network) })
}

func (m *Manager) networkNames() (names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.networks {
		names = append(names, name)
	}
	return names
}

// hold finds a network that is made as it is wanted, and keeps it from being removed.
func (m *Manager) hold(want Network, given []Given) *network {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.networks[want.Name]
	if n == nil || !n.made || !reflect.DeepEqual(n.Network, want) || !n.has(given) {
		return nil
	}
	*n.users++
	return n
}

// has tells whether the addresses lie in the network.
func (n *network) has(given []Given) bool {
	for _, g := range given {
		if !slices.ContainsFunc(n.subnets, func(s driver.Subnet) bool { return s.Pool.Contains(g.Address.Addr()) }) {
			return false
		}
	}
	return true
}

// ensure makes a network unless it is there, and holds it until its release.
func (m *Manager) ensure(ctx context.Context, want Network, given []Given) (*network, error) {
	if n := m.hold(want, given); n != nil {
		return n, nil
	}
	m.making.Lock()
	defer m.making.Unlock()
	if n := m.hold(want, given); n != nil {
		return n, nil // another was faster
	}
	m.mu.Lock()
	had := m.networks[want.Name]
	users := 0
	if had != nil {
		users = *had.users
	}
	m.mu.Unlock()
	if had != nil && !reflect.DeepEqual(had.Network, want) {
		if used := max(users, len(m.keysOf(want.Name))); used > 0 {
			return nil, invalidf("the configuration of the network %s has changed while %d containers are on it: end them, or give it another name",
				want.Name, used)
		}
		if err := m.removeNetwork(ctx, want.Name); err != nil {
			return nil, err
		}
		had = nil
	}
	n := &network{Network: want, users: new(int)} // nobody else's until it is made
	if had != nil {
		n.users = had.users
	} else { // the record comes first: whatever happens after it, making it again goes on
		err := m.Store.Update(func(tx state.Tx) error { return tx.Put(bucketNetworks, want.Name, want) })
		if err != nil {
			return nil, fmt.Errorf("record the network %s: %w", want.Name, err)
		}
		m.mu.Lock()
		m.networks[n.Name] = &network{Network: want, users: n.users}
		m.mu.Unlock()
	}
	err := m.make(ctx, n, given)
	if err != nil {
		var clash interface{ Conflict() }
		if errors.As(err, &clash) && m.Driver.Orphaned() {
			err = fmt.Errorf("%w. The state was lost: what is in the way may be containers that have run since before, which are to be ended "+
				"and started again", err)
		}
		if had == nil {
			err = errors.Join(err, m.removeNetwork(context.WithoutCancel(ctx), want.Name))
		}
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n.made = true
	*n.users++
	m.networks[n.Name] = n
	return n, nil
}

// make makes a network's pools and the network; repeating it changes nothing.
func (m *Manager) make(ctx context.Context, n *network, given []Given) error {
	var err error
	if n.Delegated {
		n.subnets, err = subnetsOf(n.Ranges, given)
	} else {
		n.subnets, err = m.makePools(n.Network)
	}
	if err != nil {
		return fmt.Errorf("make the network %s: %w", n.Name, err)
	}
	c := driver.NetworkConfig{ID: n.id(), Name: n.Name, Source: driver.SourceCNI, Options: n.Options, Internal: n.Internal}
	for _, s := range n.subnets {
		if s.Pool.Addr().Is4() {
			c.IPv4 = append(c.IPv4, s)
		} else {
			c.IPv6 = append(c.IPv6, s)
		}
	}
	if err := m.Driver.CreateNetwork(ctx, c); err != nil {
		return invalid{fmt.Errorf("make the network %s: %w", n.Name, err)}
	}
	return nil
}

// checkPublish refuses what only an engine could do: docker_gwbridge is its own.
func (n Network) checkPublish(ports int) error {
	o, err := driver.ParseOptions(n.Options)
	switch {
	case err != nil:
		return invalid{err}
	case n.Options["publish"] == driver.PublishGWBridge:
		return invalidf("network option publish=%s of the network %s: docker_gwbridge is an engine's, leave it away", driver.PublishGWBridge, n.Name)
	case o.Publish == driver.PublishGWBridge && ports > 0:
		return invalidf("the network %s publishes no ports with these options: leave -p away, or let the plugin portmap do it after mustang, "+
			"without mustang's capability portMappings", n.Name)
	}
	return nil
}

// subnetsOf are those that another plugin hands out addresses of: as far as its configuration says, and of those that it
// has given.
func subnetsOf(ranges []Range, given []Given) ([]driver.Subnet, error) {
	var out []driver.Subnet
	for _, r := range ranges {
		out = append(out, driver.Subnet{Pool: r.Subnet, Gateway: netip.PrefixFrom(r.Gateway, r.Subnet.Bits())})
	}
	for _, g := range given {
		s := driver.Subnet{Pool: g.Address.Masked()}
		if slices.ContainsFunc(out, func(had driver.Subnet) bool { return had.Pool == s.Pool }) {
			continue
		}
		if g.Gateway.IsValid() {
			s.Gateway = netip.PrefixFrom(g.Gateway, g.Address.Bits())
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, invalidf("its IPAM plugin gave no address: see its configuration, or leave \"ipam\" to mustang")
	}
	return out, nil
}

// makePools requests the network's pools, which have been requested before if it is made again.
func (m *Manager) makePools(n Network) ([]driver.Subnet, error) {
	var out []driver.Subnet
	ranges := n.Ranges
	if len(ranges) == 0 {
		ranges = []Range{{}}
	}
	has6 := slices.ContainsFunc(n.Ranges, func(r Range) bool { return r.Subnet.Addr().Is6() })
	for i, r := range append(ranges[:len(ranges):len(ranges)], Range{}) {
		automatic6 := i == len(ranges)
		if automatic6 && (!n.IPv6 || has6) {
			break
		}
		req := ipam.Request{Owner: owner(n.Name), IPv6: automatic6, First: r.First, Last: r.Last, IgnoreHostRoutes: n.Options["parent"] != ""}
		if r.Subnet.IsValid() {
			req.Pool, req.IPv6 = r.Subnet.String(), r.Subnet.Addr().Is6()
		}
		if r.Range.IsValid() {
			req.SubPool = r.Range.String()
		}
		p, err := m.Pools.RequestPool(req)
		if errors.Is(err, ipam.ErrRoute) {
			err = fmt.Errorf("%w; a network on that very network needs mode=macvlan or ipvlan and its device as parent", err)
		}
		if err != nil {
			return nil, refusal(err)
		}
		gw, err := m.Pools.RequestAddress(p.ID, r.Gateway, ipam.AddressOptions{Gateway: true, Owner: owner(n.Name)})
		if err != nil {
			return nil, refusal(err)
		}
		out = append(out, driver.Subnet{Pool: p.Subnet, Gateway: gw})
	}
	return out, nil
}

// addresses are those that the container gets: one of each family. Those of containers that have ended without a word
// are free.
func (m *Manager) addresses(ctx context.Context, n *network, a Attachment) ([]Given, error) {
	out, err := m.lease(n, a)
	if errors.Is(err, ipam.ErrTaken) || errors.Is(err, ipam.ErrExhausted) {
		m.sweep(ctx, func(k Key) bool { return k.Network == a.Network && k != a.Key })
		return m.lease(n, a)
	}
	return out, err
}

func (m *Manager) lease(n *network, a Attachment) ([]Given, error) {
	asked := a.IPs
	if n.Delegated {
		asked = nil
		for _, g := range a.Given {
			asked = append(asked, g.Address.Addr())
		}
	}
	wanted := map[bool]netip.Addr{} // by IPv6
	for _, ip := range asked {
		if had, twice := wanted[ip.Is6()]; twice {
			return nil, invalidf("the addresses %s and %s are of one family: an interface gets one of each, leave one away", had, ip)
		}
		wanted[ip.Is6()] = ip
	}
	if n.Delegated {
		return a.Given, nil
	}
	var out []Given
	for _, v6 := range []bool{false, true} {
		g, found, err := m.address(n, a, v6, wanted[v6])
		if err != nil {
			return nil, err
		}
		if found {
			out = append(out, g)
		} else if wanted[v6].IsValid() {
			return nil, invalidf("the address %s lies in none of the subnets %s of the network %s: choose one of them", wanted[v6], n.pools(), n.Name)
		}
	}
	return out, nil
}

// address leases one of a family, in the first pool that has it.
func (m *Manager) address(n *network, a Attachment, v6 bool, want netip.Addr) (g Given, found bool, err error) {
	for _, p := range m.poolsOf(n.Name) {
		if p.Subnet.Addr().Is6() != v6 || want.IsValid() && !p.Subnet.Contains(want) {
			continue
		}
		var got netip.Prefix
		got, err = m.Pools.RequestAddress(p.ID, want, ipam.AddressOptions{Owner: a.String(), Replay: true})
		if errors.Is(err, ipam.ErrExhausted) {
			continue
		}
		if err != nil {
			return g, false, refusal(err)
		}
		g.Address = got
		for _, s := range n.subnets {
			if s.Pool == p.Subnet {
				g.Gateway = s.Gateway.Addr()
			}
		}
		return g, true, nil
	}
	return g, false, refusal(err)
}

// refusal gives an error of the addresses its class.
func refusal(err error) error {
	switch {
	case errors.Is(err, ipam.ErrTaken), errors.Is(err, ipam.ErrOverlap):
		return conflict{err}
	case errors.Is(err, ipam.ErrInvalid):
		return invalid{err}
	case errors.Is(err, ipam.ErrExhausted):
		return unavailable{err}
	}
	return err
}

// removeIdle removes a network on which nobody is and that no configuration on the host names.
func (m *Manager) removeIdle(ctx context.Context, name string) error {
	m.mu.Lock()
	n, known := m.networks[name]
	awaited := known && time.Now().Before(n.await)
	m.mu.Unlock()
	if !known || !awaited && len(m.keysOf(name)) > 0 {
		return nil
	}
	if m.Declared(name) {
		m.mu.Lock()
		n.await = time.Time{}
		m.mu.Unlock()
		return nil
	}
	if awaited {
		return nil
	}
	m.making.Lock()
	defer m.making.Unlock()
	if m.takeIdle(name) > 0 {
		return nil
	}
	return m.removeNetwork(ctx, name)
}

// takeIdle keeps others from attaching to a network that is to be removed, unless somebody is on it: it returns how many. They make it
// again. The caller holds making.
func (m *Manager) takeIdle(name string) int {
	m.mu.Lock()
	used := 0
	if n := m.networks[name]; n != nil {
		if used = *n.users; used == 0 {
			n.made = false
		}
	}
	m.mu.Unlock()
	return max(used, len(m.keysOf(name)))
}

// removeNetwork removes a network with its pools; a missing one is no error.
func (m *Manager) removeNetwork(ctx context.Context, name string) error {
	if err := m.Driver.DeleteNetwork(ctx, NetworkID(name)); err != nil {
		return err
	}
	for _, p := range m.poolsOf(name) {
		if err := m.Pools.ReleasePool(p.ID); err != nil {
			return err
		}
	}
	for _, k := range m.sweptOf(name) {
		if err := m.forget(k); err != nil {
			return err
		}
	}
	if err := m.Store.Update(func(tx state.Tx) error { return tx.Delete(bucketNetworks, name) }); err != nil {
		return fmt.Errorf("forget the network %s: %w", name, err)
	}
	m.mu.Lock()
	delete(m.networks, name)
	m.mu.Unlock()
	return nil
}

// CreateNetwork implements [Host].
func (m *Manager) CreateNetwork(ctx context.Context, want Network) (Network, error) {
	if err := want.checkPublish(0); err != nil {
		return Network{}, err
	}
	n, err := m.ensure(ctx, want, nil)
	if err != nil {
		return Network{}, err
	}
	defer n.release(m)
	made := n.Network
	made.Ranges = nil
	for _, p := range m.poolsOf(n.Name) {
		r := Range{Subnet: p.Subnet, Range: p.SubPool, First: p.First, Last: p.Last}
		for _, s := range n.subnets {
			if s.Pool == p.Subnet {
				r.Gateway = s.Gateway.Addr()
			}
		}
		made.Ranges = append(made.Ranges, r)
	}
	slices.SortFunc(made.Ranges, func(a, b Range) int { return a.Subnet.Addr().Compare(b.Subnet.Addr()) })
	// so that a configuration that says it all is of the same network
	err = m.Store.Update(func(tx state.Tx) error { return tx.Put(bucketNetworks, made.Name, made) })
	if err != nil {
		return Network{}, fmt.Errorf("record the network %s: %w", made.Name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n.Network, n.await = made, time.Now().Add(awaitConf)
	return made, nil
}

// RemoveNetwork implements [Host].
func (m *Manager) RemoveNetwork(ctx context.Context, name string) error {
	m.Sweep(ctx)
	m.making.Lock()
	defer m.making.Unlock()
	if used := m.takeIdle(name); used > 0 {
		such := ""
		if keys := m.keysOf(name); len(keys) > 0 {
			such = ", such as " + nameOf(keys[0].Container)
		}
		return conflictf("remove the network %s: %d containers are on it%s: end them first", name, used, such)
	}
	return m.removeNetwork(ctx, name)
}

// CanAdd implements [Host].
func (m *Manager) CanAdd(ctx context.Context, want Network) error {
	if err := want.checkPublish(0); err != nil {
		return err
	}
	m.mu.Lock()
	_, known := m.networks[want.Name]
	m.mu.Unlock()
	if !known || want.Delegated {
		return nil
	}
	m.Sweep(ctx)
	full := map[bool]netip.Prefix{} // by IPv6
	room := map[bool]bool{}
	for _, p := range m.poolsOf(want.Name) {
		if v6 := p.Subnet.Addr().Is6(); p.Full {
			full[v6] = p.Subnet
		} else {
			room[v6] = true
		}
	}
	for v6, subnet := range full {
		if !room[v6] {
			return unavailable{fmt.Errorf("the subnet %s of the network %s has no free address: end containers on it, or make a network with a larger one", subnet, want.Name)}
		}
	}
	return nil
}
