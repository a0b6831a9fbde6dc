// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"cmp"
	"errors"
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
	return s.Network == 0 || slices.Contains(b.Networks, s.Network)
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
		return fmt.Errorf("write the tables of the sandbox %s: %w", b.Path, explain(err))
	}
	b.has, b.wrong = has, false
	return nil
}

// each brings the sandboxes up to date by one change, or anew where that fails.
func (t *Tables) each(change func(*box) (put []frontend, gone []bpf.Frontend)) error {
	var errs []error
	for _, b := range t.boxes {
		if b.wrong {
			errs = append(errs, t.settle(b))
			continue
		}
		put, gone := change(b)
		if len(put)+len(gone) == 0 {
			continue
		}
		if err := b.tables.change(put, gone); err != nil {
			b.wrong = true
			if err := t.settle(b); err != nil {
				errs = append(errs, err)
			}
			continue
		}
		for _, f := range put {
			b.has[f.Frontend] = struct{}{}
		}
		for _, f := range gone {
			delete(b.has, f)
		}
	}
	return errors.Join(errs...)
}

// PutService makes a frontend lead to its slots in every sandbox that may use it.
func (t *Tables) PutService(s bpf.Service) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.boxes) == 0 {
		return nil
	}
	if err := t.load(); err != nil {
		return err
	}
	was, had := t.services[s.Frontend]
	t.services[s.Frontend] = s
	err := t.each(func(b *box) (put []frontend, gone []bpf.Frontend) {
		if b.reaches(s) {
			return []frontend{t.frontend(s)}, nil
		}
		if _, ok := b.has[s.Frontend]; ok {
			return nil, []bpf.Frontend{s.Frontend}
		}
		return nil, nil
	})
	if had && len(was.Slots) > 0 || len(s.Slots) == 0 {
		return err
	}
	// who was refused may ask again from the same port
	return errors.Join(err, t.forget(s.Frontend.Addr, loopback(s.Frontend.Addr)))
}

// DeleteService removes a frontend; a missing one is no error.
func (t *Tables) DeleteService(f bpf.Frontend) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.services, f)
	return t.each(func(b *box) (put []frontend, gone []bpf.Frontend) {
		if _, ok := b.has[f]; ok {
			return nil, []bpf.Frontend{f}
		}
		return nil, nil
	})
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
	return t.forget(netip.Addr{}, b.Addr)
}

func (t *Tables) forget(to, from netip.Addr) error {
	var errs []error
	for _, b := range t.boxes {
		if err := t.Forget(b.Path, to, from); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func loopback(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}
