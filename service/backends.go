// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"

	"github.com/mustang-net/mustang/bpf"
)

// backendKey is what makes a backend: two services that name the same one share its id. The content
// of an id never changes, so that nothing that still names an id is led elsewhere; another cookie or
// port is another id. It is kept free of pointers: there are tens of thousands.
type backendKey struct {
	addr   [16]byte
	cookie uint64
	port   uint16
}

func keyOf(addr netip.Addr, port uint16, cookie uint64) backendKey {
	return backendKey{addr: addr.As16(), port: port, cookie: cookie}
}

func (k backendKey) address() netip.Addr { return netip.AddrFrom16(k.addr).Unmap() }

func (k backendKey) backend(id uint32) bpf.Backend {
	return bpf.Backend{ID: id, Addr: k.address(), Port: k.port, NetnsCookie: k.cookie}
}

// backendEntry is a backend with the number of entries that need it.
type backendEntry struct {
	key     backendKey
	refs    uint32
	written bool // it is in the maps
}

// backendTable gives ids to backends and counts who needs them.
type backendTable struct {
	byID    map[uint32]backendEntry
	byKey   map[backendKey]uint32
	next    uint32
	orphans []uint32 // may have lost their last reference
}

func newBackendTable() backendTable {
	return backendTable{byID: map[uint32]backendEntry{}, byKey: map[backendKey]uint32{}, next: 1}
}

// acquire counts one more need for key and gives its id.
func (t *backendTable) acquire(key backendKey) uint32 {
	id, ok := t.byKey[key]
	if !ok {
		id = t.next
		for t.taken(id) {
			id++
		}
		t.next = id + 1
		t.byKey[key] = id
	}
	e := t.byID[id]
	e.key = key
	e.refs++
	t.byID[id] = e
	return id
}

// taken reports whether id cannot be given: 0 means none to the datapath.
func (t *backendTable) taken(id uint32) bool {
	_, ok := t.byID[id]
	return ok || id == 0
}

// hold counts one more need for ids that have an entry.
func (t *backendTable) hold(ids []uint32) {
	for _, id := range ids {
		if e, ok := t.byID[id]; ok {
			e.refs++
			t.byID[id] = e
		}
	}
}

// release takes back what acquire or hold counted.
func (t *backendTable) release(ids []uint32) {
	for _, id := range ids {
		e, ok := t.byID[id]
		if !ok || e.refs == 0 {
			continue
		}
		e.refs--
		t.byID[id] = e
		if e.refs == 0 {
			t.orphans = append(t.orphans, id)
		}
	}
}

// setWritten records whether the maps hold id.
func (t *backendTable) setWritten(id uint32, written bool) {
	e := t.byID[id]
	e.written = written
	t.byID[id] = e
}

// forget drops an id that nobody needs and the maps do not hold.
func (t *backendTable) forget(id uint32) {
	if key := t.byID[id].key; t.byKey[key] == id {
		delete(t.byKey, key)
	}
	delete(t.byID, id)
}

// orphanAll puts every backend that nobody needs up for removal.
func (t *backendTable) orphanAll() {
	for id, e := range t.byID {
		if e.refs == 0 {
			t.orphans = append(t.orphans, id)
		}
	}
}

// observe takes over what the maps hold: found backends become known, and what they lack will be
// written again.
func (t *backendTable) observe(found []bpf.Backend) {
	for id, e := range t.byID {
		e.refs, e.written = 0, false
		t.byID[id] = e
	}
	for _, b := range found {
		key := keyOf(b.Addr, b.Port, b.NetnsCookie)
		t.next = max(t.next, b.ID+1)
		if e, known := t.byID[b.ID]; known {
			// A foreign change of an id we gave: left unwritten, so that it is put right.
			e.written = e.key == key
			t.byID[b.ID] = e
			continue
		}
		t.byID[b.ID] = backendEntry{key: key, written: true}
		if _, taken := t.byKey[key]; !taken {
			t.byKey[key] = b.ID
		}
	}
}
