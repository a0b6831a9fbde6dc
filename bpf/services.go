// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
)

// addrOf gives the maps' form of an address: 16 bytes, IPv4 mapped.
func addrOf(a netip.Addr) (out mstAddr) {
	if !a.IsValid() {
		return out
	}
	b := a.As16()
	for i := range out.W {
		out.W[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return out
}

// ip is the address of a key or value; the zero value stands for none.
func (a mstAddr) ip() netip.Addr {
	if a == (mstAddr{}) {
		return netip.Addr{}
	}
	return a.at()
}

// at is the address of a frontend: the zero value is :: there.
func (a mstAddr) at() netip.Addr {
	var b [16]byte
	for i, w := range a.W {
		binary.NativeEndian.PutUint32(b[4*i:], w)
	}
	return netip.AddrFrom16(b).Unmap()
}

// be converts a port between host and network byte order.
func be(port uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], port)
	return binary.NativeEndian.Uint16(b[:])
}

func (f Frontend) key(slot uint32) mstServiceKey {
	return mstServiceKey{Addr: addrOf(f.Addr), Port: be(f.Port), Proto: uint8(f.Protocol), Slot: slot}
}

// String gives proto:address:port, as listings and errors show it.
func (f Frontend) String() string {
	return fmt.Sprintf("%s:%s", f.Protocol, netip.AddrPortFrom(f.Addr, f.Port))
}

// Services reads every frontend with its slots, in no order. A slot that a writer has not filled yet is 0.
func (d *Datapath) Services() ([]Service, error) {
	found := map[Frontend]*Service{}
	slots := map[Frontend]map[uint32]uint32{}
	var key mstServiceKey
	var value mstService
	sources, err := d.sources.read(d.maps["sources"])
	if err != nil {
		return nil, err
	}
	entries := d.maps["services"].Iterate()
	for entries.Next(&key, &value) {
		f := Frontend{Addr: key.Addr.at(), Port: be(key.Port), Protocol: Protocol(key.Proto)}
		if key.Slot > 0 {
			if slots[f] == nil {
				slots[f] = map[uint32]uint32{}
			}
			slots[f][key.Slot] = value.Backend
			continue
		}
		found[f] = &Service{
			Frontend: f, ID: value.Id, Network: value.Network, Affinity: value.Affinity,
			Slots: make([]uint32, value.Count), Published: value.Flags&svcPublished != 0,
		}
		if value.Flags&svcRestricted != 0 {
			found[f].Sources = sources.of(value.Id)
		}
		if value.Reserve > 0 {
			found[f].Reserve = make([]uint32, value.Reserve)
		}
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read mst_services: %w", err)
	}
	out := make([]Service, 0, len(found))
	for f, s := range found {
		for i := range s.Slots {
			s.Slots[i] = slots[f][uint32(i)+1]
		}
		for i := range s.Reserve {
			s.Reserve[i] = slots[f][uint32(len(s.Slots)+i)+1]
		}
		out = append(out, *s)
	}
	return out, nil
}

// PutService writes the slots and sources, then the entry whose count and flags make them count, then removes
// slots and sources that an earlier service left: at no moment does it let in whom neither would have.
func (d *Datapath) PutService(s Service) error {
	m := d.maps["services"]
	key := s.Frontend.key(0)
	var had mstService
	if err := m.Lookup(&key, &had); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("read the service %s: %w", s.Frontend, err)
	}
	count, reserve := uint32(len(s.Slots)), uint32(len(s.Reserve))
	for i, id := range slices.Concat(s.Slots, s.Reserve) {
		k := s.Frontend.key(uint32(i) + 1)
		if err := m.Put(&k, &mstService{Backend: id}); err != nil {
			return fmt.Errorf("write slot %d of the service %s: %w", i+1, s.Frontend, full(err))
		}
	}
	value := mstService{Id: s.ID, Network: s.Network, Count: count, Affinity: s.Affinity, Reserve: reserve}
	if s.Published {
		value.Flags |= svcPublished
	}
	if s.Sources != nil {
		value.Flags |= svcRestricted
		if err := d.sources.add(d.maps["sources"], s.ID, s.Sources); err != nil {
			return fmt.Errorf("write the sources of the service %s: %w", s.Frontend, err)
		}
	}
	if err := m.Put(&key, &value); err != nil {
		return fmt.Errorf("write the service %s: %w", s.Frontend, full(err))
	}
	if (had.Flags|value.Flags)&svcRestricted != 0 {
		if err := d.sources.keep(d.maps["sources"], s.ID, s.Sources); err != nil {
			return fmt.Errorf("remove sources of the service %s: %w", s.Frontend, err)
		}
	}
	if had.Flags&svcRestricted != 0 && had.Id != s.ID {
		if err := d.sources.keep(d.maps["sources"], had.Id, nil); err != nil {
			return fmt.Errorf("remove sources of the service %s: %w", s.Frontend, err)
		}
	}
	if err := d.deleteSlots(s.Frontend, count+reserve, had.Count+had.Reserve); err != nil || s.Affinity == 0 {
		return err
	}
	return d.endAffinity(s)
}

// endAffinity makes clients choose anew whose backend the service has no slot for any more: it takes
// no new flows, not even of those it had before.
func (d *Datapath) endAffinity(s Service) error {
	err := removeWhere(d.maps["affinity"], func(key mstAffinityKey, value mstAffinity) bool {
		return key.Service == s.ID && !slices.Contains(s.Slots, value.Backend)
	})
	if err != nil {
		return fmt.Errorf("end the affinity of the service %s: %w", s.Frontend, err)
	}
	return nil
}

// DeleteService removes a frontend and its slots; a missing one is no error.
func (d *Datapath) DeleteService(f Frontend) error {
	m := d.maps["services"]
	key := f.key(0)
	var had mstService
	if err := m.Lookup(&key, &had); errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("read the service %s: %w", f, err)
	}
	if err := remove(m, &key); err != nil {
		return fmt.Errorf("remove the service %s: %w", f, err)
	}
	if had.Flags&svcRestricted != 0 {
		if err := d.sources.keep(d.maps["sources"], had.Id, nil); err != nil {
			return fmt.Errorf("remove the sources of the service %s: %w", f, err)
		}
	}
	return d.deleteSlots(f, 0, had.Count+had.Reserve)
}

func (d *Datapath) deleteSlots(f Frontend, from, to uint32) error {
	for slot := from + 1; slot <= to; slot++ {
		k := f.key(slot)
		if err := remove(d.maps["services"], &k); err != nil {
			return fmt.Errorf("remove slot %d of the service %s: %w", slot, f, err)
		}
	}
	return nil
}

// Backends reads every backend, in no order.
func (d *Datapath) Backends() ([]Backend, error) {
	var out []Backend
	var id uint32
	var value mstBackend
	entries := d.maps["backends"].Iterate()
	for entries.Next(&id, &value) {
		out = append(out, Backend{ID: id, Addr: value.Addr.ip(), Port: be(value.Port), NetnsCookie: value.Cookie})
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read mst_backends: %w", err)
	}
	return out, nil
}

// PutBackend writes a backend, replacing the one with its id.
func (d *Datapath) PutBackend(b Backend) error {
	value := mstBackend{Addr: addrOf(b.Addr), Port: be(b.Port), Cookie: b.NetnsCookie}
	if err := d.maps["backends"].Put(&b.ID, &value); err != nil {
		return fmt.Errorf("write the backend %d (%s): %w", b.ID, b.Addr, full(err))
	}
	return nil
}

// DeleteBackend removes a backend; a missing one is no error.
func (d *Datapath) DeleteBackend(id uint32) error {
	if err := remove(d.maps["backends"], &id); err != nil {
		return fmt.Errorf("remove the backend %d: %w", id, err)
	}
	return nil
}

// remove deletes a key that may be missing.
func remove(m *ebpf.Map, key any) error {
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// removeWhere deletes the entries for which match is true. In an LRU map the oldest entries may go while we
// look; what is missed then expires by itself.
func removeWhere[K, V any](m *ebpf.Map, match func(K, V) bool) error {
	var stale []K
	var key K
	var value V
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		if match(key, value) {
			stale = append(stale, key)
		}
	}
	lru := m.Type() == ebpf.LRUHash
	if err := entries.Err(); err != nil && !(lru && errors.Is(err, ebpf.ErrIterationAborted)) {
		return err
	}
	for i := range stale {
		if err := remove(m, &stale[i]); err != nil {
			return err
		}
	}
	return nil
}

// full says what a map's E2BIG means.
func full(err error) error {
	if errors.Is(err, ebpf.ErrKeyExist) || err == nil {
		return err
	}
	if isFull(err) {
		return fmt.Errorf("%w: the map is full: `mustang status` shows how many entries each map holds", err)
	}
	return err
}
