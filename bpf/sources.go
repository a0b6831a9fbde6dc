// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
)

// sources remembers what mst_sources holds: a trie cannot be searched by service, and a thousand published
// ports would each read the sources of all. The zero value reads the map when it is first asked.
type sources struct {
	mu     sync.Mutex
	loaded bool
	held   map[uint32][]netip.Prefix // by id of the service, sorted
	fenced map[uint32]bool           // by id: see fence
}

// read reads the map anew.
func (s *sources) read(m *ebpf.Map) (*sources, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loaded = false
	return s, s.load(m)
}

func (s *sources) load(m *ebpf.Map) error {
	if s.loaded {
		return nil
	}
	s.held, s.fenced = map[uint32][]netip.Prefix{}, map[uint32]bool{}
	var key mstSourceKey
	var v uint8
	entries := m.Iterate()
	for entries.Next(&key, &v) {
		if v == 0 {
			s.fenced[key.Service] = true
			continue
		}
		s.held[key.Service] = append(s.held[key.Service], key.prefix())
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("read mst_sources: %w", err)
	}
	for _, held := range s.held {
		slices.SortFunc(held, netip.Prefix.Compare)
	}
	s.loaded = true
	return nil
}

// of lists the sources of a service, sorted; never nil, since one without sources lets in nobody.
func (s *sources) of(id uint32) []netip.Prefix {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]netip.Prefix{}, s.held[id]...)
}

// ids are the services that the map has sources of.
func (s *sources) ids() []uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := slices.Collect(maps.Keys(s.held))
	for id := range s.fenced {
		if s.held[id] == nil {
			ids = append(ids, id)
		}
	}
	return ids
}

// add lets in the prefixes, too.
func (s *sources) add(m *ebpf.Map, id uint32, prefixes []netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.load(m); err != nil {
		return err
	}
	for _, p := range prefixes {
		p = canonical(p)
		at, is := slices.BinarySearchFunc(s.held[id], p, netip.Prefix.Compare)
		if is {
			continue
		}
		s.held[id] = slices.Insert(s.held[id], at, p)
		err := s.fence(m, id) // before what it is to keep apart
		if key := sourceKey(id, p); err == nil {
			err = m.Put(&key, uint8(1))
		}
		if err != nil {
			s.loaded = false
			return fmt.Errorf("let in %s: %w", p, full(err))
		}
	}
	return nil
}

// keep lets in nobody but the prefixes any more.
func (s *sources) keep(m *ebpf.Map, id uint32, prefixes []netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.load(m); err != nil {
		return err
	}
	if len(s.held[id]) == 0 && !s.fenced[id] {
		return nil
	}
	wanted := map[netip.Prefix]bool{}
	for _, p := range prefixes {
		wanted[canonical(p)] = true
	}
	for _, p := range slices.Clone(s.held[id]) {
		if wanted[p] {
			continue
		}
		s.held[id] = slices.DeleteFunc(s.held[id], func(held netip.Prefix) bool { return held == p })
		if p == all4 {
			continue // fence takes it away
		}
		key := sourceKey(id, p)
		if err := remove(m, &key); err != nil {
			s.loaded = false
			return fmt.Errorf("no longer let in %s: %w", p, err)
		}
	}
	if err := s.fence(m, id); err != nil {
		s.loaded = false
		return fmt.Errorf("keep IPv4 and IPv6 apart: %w", err)
	}
	if len(s.held[id]) == 0 {
		delete(s.held, id)
	}
	return nil
}

// all4 is every address of IPv4, which the map holds as mapped ones, within the space of IPv6.
var all4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)

// fence keeps IPv4 out of prefixes of IPv6 that hold the mapped addresses, as ::/0 does, unless all of it is let in.
func (s *sources) fence(m *ebpf.Map, id uint32) error {
	key := sourceKey(id, all4)
	mapped := netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff})
	in := slices.Contains(s.held[id], all4)
	// Contains keeps the two apart, which the map does not
	apart := slices.ContainsFunc(s.held[id], func(p netip.Prefix) bool {
		return p.Addr().Is6() && p.Bits() < 96 && netip.PrefixFrom(mapped, p.Bits()).Masked().Addr() == p.Addr()
	})
	delete(s.fenced, id)
	switch {
	case in:
		return m.Put(&key, uint8(1))
	case apart:
		s.fenced[id] = true
		return m.Put(&key, uint8(0))
	}
	return remove(m, &key)
}

// canonical is a prefix as the map gives it back.
func canonical(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

func sourceKey(id uint32, p netip.Prefix) mstSourceKey {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return mstSourceKey{Prefixlen: uint32(sourceServiceBits + bits), Service: id, Addr: addrOf(p.Addr())}
}

// prefix is what the key lets in.
func (k mstSourceKey) prefix() netip.Prefix {
	bits := int(k.Prefixlen) - sourceServiceBits
	a := k.Addr.at()
	if a.Is4() {
		bits -= 96
	}
	return netip.PrefixFrom(a, bits)
}

// sourceServiceBits are those of a key's prefixlen that cover the service.
const sourceServiceBits = 32
