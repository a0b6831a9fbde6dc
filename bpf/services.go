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

func (k mstServiceKey) frontend() Frontend {
	return Frontend{Addr: k.Addr.at(), Port: be(k.Port), Protocol: Protocol(k.Proto)}
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
		f := key.frontend()
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
	had, err := d.held(s.Frontend)
	if err != nil {
		return err
	}
	return d.PutServices([]Service{s}, []Held{had})
}

// Held is what the maps hold at a frontend; the zero value is nothing.
type Held struct{ ID, Slots uint32 } // with those in reserve

// Held is what the maps hold once the service is written.
func (s Service) Held() Held { return Held{s.ID, uint32(len(s.Slots) + len(s.Reserve))} }

func (d *Datapath) held(f Frontend) (Held, error) {
	key := f.key(0)
	var had mstService
	if err := d.maps["services"].Lookup(&key, &had); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return Held{}, fmt.Errorf("read the service %s: %w", f, err)
	}
	return Held{had.Id, had.Count + had.Reserve}, nil
}

// PutServices writes many at once, each as PutService does and in the place of one in had, the entries in their
// order. After an error any part of them may be written.
func (d *Datapath) PutServices(list []Service, had []Held) error {
	m := d.maps["services"]
	var slots, entries puts[mstServiceKey, mstService]
	for _, s := range list {
		for i, id := range s.Slots {
			slots.add(s.Frontend.key(uint32(i)+1), mstService{Backend: id})
		}
		for i, id := range s.Reserve {
			slots.add(s.Frontend.key(uint32(len(s.Slots)+i)+1), mstService{Backend: id})
		}
		entries.add(s.Frontend.key(0), s.entry())
	}
	if key, err := slots.write(m); err != nil {
		return fmt.Errorf("write slot %d of the service %s: %w", key.Slot, key.frontend(), full(err))
	}
	for _, s := range list {
		if s.Sources == nil {
			continue
		}
		if err := d.sources.add(d.maps["sources"], s.ID, s.Sources); err != nil {
			return fmt.Errorf("write the sources of the service %s: %w", s.Frontend, err)
		}
	}
	if key, err := entries.write(m); err != nil {
		return fmt.Errorf("write the service %s: %w", key.frontend(), full(err))
	}
	return d.clean(list, had)
}

// entry is what makes a service's slots and sources count.
func (s Service) entry() mstService {
	value := mstService{Id: s.ID, Network: s.Network, Count: uint32(len(s.Slots)), Affinity: s.Affinity, Reserve: uint32(len(s.Reserve))}
	if s.Published {
		value.Flags |= svcPublished
	}
	if s.Sources != nil {
		value.Flags |= svcRestricted
	}
	return value
}

// clean removes what services in had left that others have taken the place of.
func (d *Datapath) clean(list []Service, had []Held) error {
	var stale []mstServiceKey
	for i, s := range list {
		err := d.sources.keep(d.maps["sources"], s.ID, s.Sources)
		if had[i].ID != s.ID {
			err = errors.Join(err, d.sources.keep(d.maps["sources"], had[i].ID, nil))
		}
		if err != nil {
			return fmt.Errorf("remove sources of the service %s: %w", s.Frontend, err)
		}
		for slot := s.Held().Slots + 1; slot <= had[i].Slots; slot++ {
			stale = append(stale, s.Frontend.key(slot))
		}
	}
	if err := removeAll(d.maps["services"], stale); err != nil {
		return fmt.Errorf("remove slots of services: %w", err)
	}
	for _, s := range list {
		if s.Affinity == 0 {
			continue
		}
		if err := d.endAffinity(s); err != nil {
			return err
		}
	}
	return nil
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
	had, err := d.held(f)
	if err != nil {
		return err
	}
	return d.DeleteServices([]Frontend{f}, []Held{had})
}

// DeleteServices removes many at once, of which the maps hold had, the entries in their order and then the slots.
// After an error any part of them may be gone.
func (d *Datapath) DeleteServices(list []Frontend, had []Held) error {
	var entries, slots []mstServiceKey
	for i, f := range list {
		entries = append(entries, f.key(0))
		for slot := uint32(1); slot <= had[i].Slots; slot++ {
			slots = append(slots, f.key(slot))
		}
	}
	if err := removeAll(d.maps["services"], entries); err != nil {
		return fmt.Errorf("remove services: %w", err)
	}
	for i, f := range list {
		if err := d.sources.keep(d.maps["sources"], had[i].ID, nil); err != nil {
			return fmt.Errorf("remove the sources of the service %s: %w", f, err)
		}
	}
	if err := removeAll(d.maps["services"], slots); err != nil {
		return fmt.Errorf("remove slots of services: %w", err)
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

// full says what a map's E2BIG means.
func full(err error) error {
	if errors.Is(err, ebpf.ErrKeyExist) || err == nil {
		return err
	}
	if isFull(err) {
		return fmt.Errorf("%w: the map is full: see `mustang status` for how many entries each map holds, and remove what is not needed", err)
	}
	return err
}
