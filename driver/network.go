// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/mustang-net/mustang/service"
	"github.com/mustang-net/mustang/state"
)

// Network is a network as the state keeps it.
type Network struct {
	ID       string            `json:"id"`
	Name     string            `json:"name,omitempty"`
	Source   string            `json:"source,omitempty"` // "" is Docker's
	Number   uint32            `json:"number"`           // in the maps; from 1, never used twice
	Options  Options           `json:"options"`
	Raw      map[string]string `json:"raw,omitempty"` // the options as given
	IPv4     []Subnet          `json:"ipv4,omitempty"`
	IPv6     []Subnet          `json:"ipv6,omitempty"`
	Internal bool              `json:"internal,omitempty"`
	VIPs     []netip.Prefix    `json:"vips,omitempty"` // its blocks of the service pool
	// Partial says that it is half made or half removed, and nobody's: nobody asks for its removal any more.
	Partial bool `json:"partial,omitempty"`
}

// same tells whether n was made from cfg.
func (n *Network) same(cfg NetworkConfig) bool {
	equal := func(a, b Subnet) bool { return a.Pool == b.Pool && a.Gateway == b.Gateway }
	return slices.EqualFunc(n.IPv4, cfg.IPv4, equal) && slices.EqualFunc(n.IPv6, cfg.IPv6, equal) &&
		maps.Equal(n.Raw, cfg.Options) && n.Internal == cfg.Internal
}

// Subnets are the pools of both families.
func (n *Network) Subnets() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range slices.Concat(n.IPv4, n.IPv6) {
		out = append(out, s.Pool)
	}
	return out
}

// subnetOf is the subnet that holds addr.
func (n *Network) subnetOf(addr netip.Addr) (Subnet, bool) {
	for _, s := range slices.Concat(n.IPv4, n.IPv6) {
		if s.Pool.Contains(addr) {
			return s, true
		}
	}
	return Subnet{}, false
}

// gateways are the gateway addresses with the lengths of their subnets.
func (n *Network) gateways() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range slices.Concat(n.IPv4, n.IPv6) {
		if s.Gateway.IsValid() {
			out = append(out, netip.PrefixFrom(s.Gateway.Addr(), s.Pool.Bits()))
		}
	}
	return out
}

func (n *Network) service() service.Network {
	return service.Network{
		ID: n.ID, Number: n.Number, Name: n.Name,
		IPv4: len(n.IPv4) > 0, IPv6: len(n.IPv6) > 0, VIP: n.Options.VIP, Internal: n.Internal,
	}
}

// CreateNetwork creates a network. Creating it again as it is is no error.
func (m *Manager) CreateNetwork(_ context.Context, cfg NetworkConfig) error {
	opts, err := ParseOptions(cfg.Options)
	if err != nil {
		return err
	}
	if !cfg.Internal && (opts.GatewayMode4 == GatewayIsolated || opts.GatewayMode6 == GatewayIsolated) {
		return fmt.Errorf("gateway mode %q is for internal networks only: create the network with --internal", GatewayIsolated)
	}
	if cfg.ID == "" || len(cfg.IPv4)+len(cfg.IPv6) == 0 {
		return fmt.Errorf("create network %q: it needs an id and at least one subnet", cfg.ID)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if had, ok := m.networks[cfg.ID]; ok && !had.Partial {
		if !had.same(cfg) {
			return fmt.Errorf("create network %s: it exists with the subnets %v and the options %v", cfg.ID, had.Subnets(), had.Raw)
		}
		return m.setUpNetwork(had)
	}
	if err := m.clearNetworks(cfg); err != nil {
		return err
	}
	n := &Network{
		ID: cfg.ID, Name: cfg.Name, Source: cfg.Source, Options: opts, Raw: cfg.Options,
		IPv4: cfg.IPv4, IPv6: cfg.IPv6, Internal: cfg.Internal, Partial: true,
	}
	if err := m.checkSubnets(n); err != nil {
		return err
	}
	if err := m.checkParent(n); err != nil {
		return err
	}
	if err := m.checkLost(n); err != nil {
		return err
	}
	if err := m.checkOff(n); err != nil {
		return err
	}
	// the record comes first: whatever happens after it, Restore can finish the undo
	err = m.store.Update(func(tx state.Tx) error {
		n.Number = 0
		if _, err := tx.Get(bucketCounter, "network", &n.Number); err != nil {
			return err
		}
		n.Number++
		if err := tx.Put(bucketCounter, "network", n.Number); err != nil {
			return err
		}
		return tx.Put(bucketNetworks, n.ID, n)
	})
	if err != nil {
		return fmt.Errorf("record the network %s: %w", n.ID, err)
	}
	m.networks[n.ID] = n
	if err := m.setUpNetwork(n); err != nil {
		return errors.Join(err, m.tearDownNetwork(n))
	}
	n.Partial = false
	if err := m.put(bucketNetworks, n.ID, n); err != nil {
		n.Partial = true
		return errors.Join(fmt.Errorf("record the network %s: %w", n.ID, err), m.tearDownNetwork(n))
	}
	return nil
}

// clearNetworks removes what is left of networks that are in the way of a new one.
func (m *Manager) clearNetworks(cfg NetworkConfig) error {
	fresh := &Network{IPv4: cfg.IPv4, IPv6: cfg.IPv6}
	for _, n := range m.networks {
		if n.Partial && (n.ID == cfg.ID || fresh.overlap(n.Subnets()).IsValid()) {
			if err := m.removeNetwork(n); err != nil {
				return fmt.Errorf("remove what is left of the network %s: %w", n.ID, err)
			}
		}
	}
	return nil
}

// overlap is a prefix that overlaps a subnet of the network, or none.
func (n *Network) overlap(prefixes []netip.Prefix) netip.Prefix {
	for _, p := range prefixes {
		if slices.ContainsFunc(n.Subnets(), p.Overlaps) {
			return p
		}
	}
	return netip.Prefix{}
}

// checkSubnets refuses what overlaps a network of ours or the service pools: an address could not be told
// from another, or from a VIP.
func (m *Manager) checkSubnets(n *Network) error {
	for i, p := range n.Subnets() {
		one := &Network{IPv4: []Subnet{{Pool: p}}}
		if pool := one.overlap(m.pools); pool.IsValid() {
			return fmt.Errorf("subnet %s overlaps the service pool %s: choose another subnet", p, pool)
		}
		if own := one.overlap(n.Subnets()[:i]); own.IsValid() {
			return fmt.Errorf("subnet %s overlaps %s of the same network: choose another subnet", p, own)
		}
		for _, other := range m.networks {
			if theirs := one.overlap(other.Subnets()); theirs.IsValid() {
				return conflict{fmt.Errorf("subnet %s overlaps %s of the network %s: choose another subnet",
					p, theirs, cmp.Or(other.Name, other.ID))}
			}
		}
	}
	return m.checkOnLink(n)
}

// checkOnLink refuses subnets of the host's own networks, whose addresses an endpoint would take over, and
// those that are no subnets of hosts. A network on a parent is on such a network by intent.
func (m *Manager) checkOnLink(n *Network) error {
	for _, p := range n.Subnets() {
		a := p.Addr()
		if a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a.IsLinkLocalUnicast() {
			return fmt.Errorf("subnet %s is no range for hosts: choose a private one, such as 10.77.0.0/24", p)
		}
	}
	if n.Options.Parent != "" {
		return nil
	}
	onLink, err := m.links.OnLink()
	if err != nil {
		return err
	}
	for _, p := range n.Subnets() {
		if i := slices.IndexFunc(onLink, p.Overlaps); i >= 0 {
			return conflict{fmt.Errorf("subnet %s overlaps %s, a network that the host is on: choose another subnet, "+
				"or, for containers on that network, mode=macvlan or ipvlan with its device as parent", p, onLink[i])}
		}
	}
	return nil
}

// checkParent refuses a parent that another network has: on one parent they would not be apart.
func (m *Manager) checkParent(n *Network) error {
	for _, other := range m.networks {
		if n.Options.Parent != "" && other.Options.Parent == n.Options.Parent {
			return fmt.Errorf("parent %s is the network %s's: give each network a parent of its own, such as a VLAN (parent=%s.50)",
				n.Options.Parent, cmp.Or(other.Name, other.ID), n.Options.Parent)
		}
	}
	return nil
}

// setUpNetwork makes the kernel agree with the record; repeating it changes nothing.
func (m *Manager) setUpNetwork(n *Network) error {
	vips, err := m.services.AddNetwork(n.service())
	if err != nil {
		return fmt.Errorf("give the network %s its virtual IPs: %w", n.ID, err)
	}
	if !slices.Equal(vips, n.VIPs) {
		n.VIPs = vips
		if err := m.put(bucketNetworks, n.ID, n); err != nil {
			return fmt.Errorf("record the network %s: %w", n.ID, err)
		}
	}
	if err := m.mode(n).raise(n); err != nil {
		return err
	}
	if n.Off() {
		return m.setEnds() // whose tables guard it
	}
	return m.guardNetwork(n)
}

// tearDownNetwork undoes setUpNetwork and forgets the network.
func (m *Manager) tearDownNetwork(n *Network) error {
	var errs []error
	var unmarked error
	if !n.Partial {
		n.Partial = true
		unmarked = m.put(bucketNetworks, n.ID, n)
	}
	if err := m.unguardNetwork(n); err != nil {
		return errors.Join(err, unmarked) // before its device's index is lost
	}
	errs = append(errs, m.mode(n).lower(n), m.services.RemoveNetwork(n.ID))
	if n.Off() {
		errs = append(errs, m.setEnds(n.ID))
	}
	if err := errors.Join(errs...); err != nil {
		return errors.Join(err, unmarked)
	}
	if err := m.remove(bucketNetworks, n.ID); err != nil {
		return fmt.Errorf("forget the network %s: %w", n.ID, err)
	}
	delete(m.networks, n.ID)
	return nil
}

// DeleteNetwork removes a network and what is left of its endpoints; a missing one is no error.
func (m *Manager) DeleteNetwork(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, ok := m.networks[id]
	if !ok {
		return nil
	}
	return m.removeNetwork(n)
}

func (m *Manager) removeNetwork(n *Network) error {
	for _, e := range m.endpoints {
		if e.NetworkID == n.ID {
			if err := m.tearDownEndpoint(e); err != nil {
				return err
			}
		}
	}
	return m.tearDownNetwork(n)
}

// SetNetworkName records the name that people know a network by.
func (m *Manager) SetNetworkName(id, name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, ok := m.networks[id]
	if !ok || n.Name == name {
		return
	}
	before := n.Name
	n.Name = name
	if err := m.put(bucketNetworks, id, n); err != nil {
		n.Name = before // so that the next call tries again
		m.log.WithError(err).WithField("network", name).Warn("record the name of a network")
		return
	}
	if _, err := m.services.AddNetwork(n.service()); err != nil {
		m.log.WithError(err).WithField("network", name).Warn("tell the services the name of a network")
	}
}

// Networks lists the networks by number.
func (m *Manager) Networks() []Network {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Network, 0, len(m.networks))
	for _, n := range m.networks {
		out = append(out, *n)
	}
	slices.SortFunc(out, func(a, b Network) int { return cmp.Compare(a.Number, b.Number) })
	return out
}
