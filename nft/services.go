// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mustang-net/mustang/bpf"
)

// frontend is what a sandbox must know to translate a service.
type frontend struct {
	bpf.Frontend
	hand     bool // of no network: its backends need not be where the way to the VIP leads
	affinity bool
	targets  []netip.AddrPort // one for each slot; port 0 keeps the port that was asked for
}

// load reads all services, once there is a sandbox that needs them.
func (t *Tables) load() error {
	if t.loaded {
		return nil
	}
	backends, err := t.Services.Backends()
	if err != nil {
		return err
	}
	services, err := t.Services.Services()
	if err != nil {
		return err
	}
	for _, b := range backends {
		t.backends[b.ID] = b
	}
	for _, s := range services {
		t.services[s.Frontend] = s
	}
	t.loaded = true
	return nil
}

// reaches tells whether members of a sandbox may use a service.
func (b *box) reaches(s bpf.Service) bool {
	return !s.Published && (s.Network == 0 || slices.Contains(b.Networks, s.Network))
}

func (t *Tables) frontend(s bpf.Service) frontend {
	f := frontend{Frontend: s.Frontend, hand: s.Network == 0, affinity: s.Affinity > 0}
	for _, id := range s.Slots {
		if b, ok := t.backends[id]; ok {
			f.targets = append(f.targets, netip.AddrPortFrom(b.Addr, b.Port))
		}
	}
	return f
}

// settle writes all of a sandbox's frontends if its tables are not as they should be.
func (t *Tables) settle(b *box) error {
	if !b.wrong {
		return nil
	}
	if err := t.load(); err != nil {
		return err
	}
	has := map[bpf.Frontend]struct{}{}
	var all []frontend
	for _, s := range t.services {
		if b.reaches(s) {
			all = append(all, t.frontend(s))
			has[s.Frontend] = struct{}{}
		}
	}
	slices.SortFunc(all, func(x, y frontend) int { return cmp.Compare(chainName(x.Frontend), chainName(y.Frontend)) })
	if err := b.tables.replace(all); err != nil {
		b.failed = fmt.Errorf("write the tables of the sandbox %s: %w", b.Path, explain(err))
		return b.failed
	}
	b.has, b.wrong, b.failed = has, false, nil
	return nil
}

// PutService makes a frontend lead to its slots in every sandbox that may use it, at the next [Tables.Flush].
func (t *Tables) PutService(s bpf.Service) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.boxes) == 0 || s.Published { // that is the host's
		return nil
	}
	if err := t.load(); err != nil {
		return err
	}
	if was, had := t.services[s.Frontend]; (!had || len(was.Slots) == 0) && len(s.Slots) > 0 {
		t.woken = append(t.woken, s.Frontend.Addr)
	}
	t.services[s.Frontend] = s
	t.dirty[s.Frontend] = struct{}{}
	return nil
}

// DeleteService removes a frontend at the next [Tables.Flush]; a missing one is no error.
func (t *Tables) DeleteService(f bpf.Frontend) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.services, f)
	if len(t.boxes) > 0 {
		t.dirty[f] = struct{}{}
	}
	return nil
}

// Flush writes the changes since the last one, in one transaction a sandbox. What a sandbox refuses is its own matter,
// not that of who changes a service: [Tables.State] tells of it, and [Tables.Check] tries again.
func (t *Tables) Flush() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	needed := len(t.dirty) > 0
	for _, b := range t.boxes {
		needed = needed || b.wrong
	}
	if needed {
		if err := t.load(); err != nil {
			return err
		}
	}
	for _, b := range t.boxes {
		if b.failed == nil {
			t.flush(b)
		}
		t.keepTrusted()
	}
	clear(t.dirty)
	woken := t.woken
	t.woken = nil
	slices.SortFunc(woken, netip.Addr.Compare)
	for _, vip := range slices.Compact(woken) { // who was refused may ask again from the same port
		t.forget(flows{vip, loopback(vip)})
	}
	return nil
}

// retry writes anew what a sandbox has refused.
func (t *Tables) retry() {
	for _, b := range t.boxes {
		if b.failed != nil {
			b.failed = t.settle(b)
			t.keepTrusted()
		}
		for f := range b.unforgotten {
			t.forgetIn(b, f)
		}
	}
}

// flush brings a sandbox up to date by one change, or anew where that fails.
func (t *Tables) flush(b *box) {
	if b.wrong {
		_ = t.settle(b) // the box keeps what fails
		return
	}
	var put []frontend
	var gone []bpf.Frontend
	for f := range t.dirty {
		_, has := b.has[f]
		if s, ok := t.services[f]; ok && b.reaches(s) {
			put = append(put, t.frontend(s))
		} else if has {
			gone = append(gone, f)
		}
	}
	if len(put)+len(gone) == 0 {
		return
	}
	if err := b.tables.change(put, gone); err != nil {
		b.wrong = true
		_ = t.settle(b)
		return
	}
	for _, f := range put {
		b.has[f.Frontend] = struct{}{}
	}
	for _, f := range gone {
		delete(b.has, f)
	}
}

// PutBackend remembers a backend. Services that need it come after it.
func (t *Tables) PutBackend(b bpf.Backend) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.loaded {
		t.backends[b.ID] = b
	}
	return nil
}

// DeleteBackend ends the UDP flows to a backend that is gone: the next datagram asks its service again.
func (t *Tables) DeleteBackend(id uint32) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.boxes) == 0 {
		return nil
	}
	if err := t.load(); err != nil {
		return err
	}
	b, ok := t.backends[id]
	delete(t.backends, id)
	if !ok {
		return nil
	}
	for _, other := range t.backends {
		if other.Addr == b.Addr {
			return nil // it goes on under another id
		}
	}
	t.forget(flows{from: b.Addr})
	return nil
}

// flows are UDP flows that went to an address, or to any if it is invalid, and are answered from another.
type flows struct{ to, from netip.Addr }

func (t *Tables) forget(f flows) {
	for _, b := range t.boxes {
		t.forgetIn(b, f)
	}
}

func (t *Tables) forgetIn(b *box, f flows) {
	if err := t.Forget(b.Path, f.to, f.from); err != nil {
		b.unforgotten[f] = err
		return
	}
	delete(b.unforgotten, f)
}

func loopback(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}
