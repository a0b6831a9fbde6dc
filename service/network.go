// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/state"
)

// network is a network with its block of VIPs and the services of its names.
type network struct {
	Network
	blocks    [2]netip.Prefix // by family; invalid where it has none
	names     map[string]*named
	endpoints map[string]*endpoint
}

func newNetwork(n Network, blocks []netip.Prefix) *network {
	net := &network{Network: n, names: map[string]*named{}, endpoints: map[string]*endpoint{}}
	for _, b := range blocks {
		net.blocks[familyOf(b.Addr())] = b
	}
	return net
}

// label is what people call the network.
func (n *network) label() string { return cmp.Or(n.Name, n.ID) }

func (n *network) list() (blocks []netip.Prefix) {
	for _, b := range n.blocks {
		if b.IsValid() {
			blocks = append(blocks, b)
		}
	}
	return blocks
}

func (n *network) wants(family int) bool {
	return n.VIP && (family == family4 && n.IPv4 || family == family6 && n.IPv6)
}

// AddNetwork makes the names of a network services and returns its blocks of the service pools, one
// per family it has, IPv4 first; none if its VIPs are off. The first block of every pool is given to no
// network: hand-made services have it. Adding a network again changes what differs, but an empty name
// keeps the one that is known, and blocks stay what they are until [Manager.RemoveNetwork].
func (m *Manager) AddNetwork(n Network) ([]netip.Prefix, error) {
	if n.ID == "" || n.Number == 0 {
		return nil, invalidf("network without an id or a number: the driver must give both")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.networks[n.ID]
	if old != nil && n.Name == "" {
		n.Name = old.Name
	}
	blocks, err := m.blocksFor(n, old)
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", cmp.Or(n.Name, n.ID), err)
	}
	if old != nil && old.Network == n && old.blocks == blocks {
		return old.list(), nil
	}
	next := &network{Network: n, blocks: blocks}
	err = m.commit(0, func(tx state.Tx) error {
		return tx.Put(bucketNetworks, n.ID, networkRecord{n, next.list()})
	})
	if err != nil {
		return nil, err
	}
	if old == nil {
		old = newNetwork(n, nil)
		m.networks[n.ID] = old
	}
	old.Network, old.blocks = n, blocks
	m.settleNetwork(old)
	return old.list(), m.finish(m.commit(0, nil))
}

// blocksFor keeps the blocks a network has and takes those it lacks.
func (m *Manager) blocksFor(n Network, old *network) (blocks [2]netip.Prefix, err error) {
	if old != nil {
		blocks = old.blocks
	}
	want := &network{Network: n}
	for family := range blocks {
		if !want.wants(family) || blocks[family].IsValid() {
			continue
		}
		if blocks[family], err = m.takeBlock(family); err != nil {
			return blocks, err
		}
	}
	return blocks, nil
}

// settleNetwork links endpoints that came before their network and brings its names up to date.
func (m *Manager) settleNetwork(n *network) {
	for _, ep := range m.endpoints {
		if ep.Network == n.ID {
			ep.net = n
			n.endpoints[ep.ID] = ep
		}
	}
	for _, ep := range n.endpoints {
		m.settle(ep)
	}
	for _, s := range n.names {
		if !n.VIP {
			m.dropNamed(s)
			m.unsaved[nameKey{n.ID, s.name}] = struct{}{}
			continue
		}
		m.place(s)
		m.markNamed(s)
	}
}

// RemoveNetwork forgets a network, its VIPs and its block. A network that is not known is no error.
func (m *Manager) RemoveNetwork(id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.networks[id]
	if n == nil {
		return nil
	}
	err := m.commit(0, func(tx state.Tx) error {
		for name := range n.names {
			if err := tx.Delete(bucketNames, nameKey{id, name}.record()); err != nil {
				return err
			}
		}
		return tx.Delete(bucketNetworks, id)
	})
	if err != nil {
		return err
	}
	for _, s := range n.names {
		m.dropNamed(s)
	}
	for _, ep := range n.endpoints {
		ep.net, ep.names = nil, nil
	}
	delete(m.networks, id)
	return m.finish(nil)
}

// dropNamed forgets the service of a name; its record is the caller's.
func (m *Manager) dropNamed(s *named) {
	m.markNamed(s)
	for _, vip := range s.vips {
		if m.nameVIPs[vip] == s {
			delete(m.nameVIPs, vip)
		}
	}
	for _, ep := range s.members {
		ep.names = slices.DeleteFunc(ep.names, func(other *named) bool { return other == s })
	}
	delete(s.net.names, s.name)
	delete(m.ids, s.id)
}

func (m *Manager) markNamed(s *named) {
	for _, vip := range s.vips {
		if vip.IsValid() {
			m.mark(bpf.Frontend{Addr: vip})
		}
	}
}
