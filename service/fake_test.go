// SPDX-License-Identifier: Apache-2.0

package service

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	"github.com/sirupsen/logrus/hooks/test"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/state"
)

// fakeMaps holds what the kernel would, and fails the test on any write that a packet could trip over.
type fakeMaps struct {
	t        testing.TB
	services map[bpf.Frontend]bpf.Service
	backends map[uint32]bpf.Backend
	writes   int
	fail     func(op string) bool // nil never
}

var errInjected = errors.New("injected")

func newFakeMaps(t testing.TB) *fakeMaps {
	return &fakeMaps{t: t, services: map[bpf.Frontend]bpf.Service{}, backends: map[uint32]bpf.Backend{}}
}

func (f *fakeMaps) write(op string) error {
	if f.fail != nil && f.fail(op) {
		return errInjected
	}
	f.writes++
	return nil
}

func (f *fakeMaps) Services() ([]bpf.Service, error) {
	return slices.Collect(maps.Values(f.services)), nil
}

func (f *fakeMaps) Backends() ([]bpf.Backend, error) {
	return slices.Collect(maps.Values(f.backends)), nil
}

func (f *fakeMaps) PutService(s bpf.Service) error {
	if err := f.write("put service"); err != nil {
		return err
	}
	for _, id := range s.Slots {
		_, there := f.backends[id]
		require.True(f.t, there, "service %s has a slot without backend", text(s.Frontend))
	}
	require.LessOrEqual(f.t, len(s.Slots), MaxSlots)
	require.NotZero(f.t, s.ID)
	s.Slots = slices.Clone(s.Slots)
	f.services[s.Frontend] = s
	return nil
}

func (f *fakeMaps) DeleteService(front bpf.Frontend) error {
	if err := f.write("delete service"); err != nil {
		return err
	}
	delete(f.services, front)
	if front == front.Head() {
		for other := range f.services {
			require.True(f.t, other.Addr != front.Addr || f.fail != nil, "the head of %s went before %s", front.Addr, text(other))
		}
	}
	return nil
}

func (f *fakeMaps) PutServices(list []bpf.Service, had []bpf.Held) error {
	for i, s := range list {
		require.Equal(f.t, f.services[s.Frontend].Held(), had[i], "what the maps have of %s", text(s.Frontend))
		if err := f.PutService(s); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeMaps) DeleteServices(list []bpf.Frontend, had []bpf.Held) error {
	for i, front := range list {
		require.Equal(f.t, f.services[front].Held(), had[i], "what the maps have of %s", text(front))
		if err := f.DeleteService(front); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeMaps) PutBackend(b bpf.Backend) error {
	if err := f.write("put backend"); err != nil {
		return err
	}
	if was, ok := f.backends[b.ID]; ok {
		require.Equal(f.t, was, b, "the content of an id changed")
	}
	require.NotZero(f.t, b.ID)
	f.backends[b.ID] = b
	return nil
}

func (f *fakeMaps) DeleteBackend(id uint32) error {
	if err := f.write("delete backend"); err != nil {
		return err
	}
	for _, s := range f.services {
		require.False(f.t, slices.Contains(s.Slots, id), "service %s still has a slot with the backend", text(s.Frontend))
	}
	delete(f.backends, id)
	return nil
}

// dump writes the maps as lines that do not depend on ids: one per service with its slots, weights as
// xN, and one per backend that is in no slot.
func (f *fakeMaps) dump() string {
	var lines []string
	used := map[uint32]bool{}
	for _, s := range f.services {
		counts := map[string]int{}
		for _, id := range s.Slots {
			used[id] = true
			b := f.backends[id]
			counts[target(netip.AddrPortFrom(b.Addr, b.Port))+fmt.Sprintf("@%d", b.NetnsCookie)]++
		}
		line := fmt.Sprintf("%s net=%d ->", text(s.Frontend), s.Network)
		for _, b := range slices.Sorted(maps.Keys(counts)) {
			line += " " + b
			if counts[b] > 1 {
				line += fmt.Sprintf("x%d", counts[b])
			}
		}
		lines = append(lines, line)
	}
	for id, b := range f.backends {
		if !used[id] {
			lines = append(lines, "idle "+target(netip.AddrPortFrom(b.Addr, b.Port)))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func (f *fakeMaps) is(want ...string) {
	f.t.Helper()
	slices.Sort(want)
	require.Equal(f.t, strings.Join(want, "\n"), f.dump())
}

// world is a manager with its store and maps, which outlive it.
type world struct {
	*Manager
	store state.Store
	maps  *fakeMaps
	log   *logrus.Logger
	hook  *test.Hook
}

func newWorld(t testing.TB) *world {
	w := &world{store: state.Memory(), maps: newFakeMaps(t)}
	w.restart(t)
	require.NoError(t, w.Sync())
	return w
}

func (w *world) restart(t testing.TB) {
	w.log, w.hook = test.NewNullLogger()
	m, err := New(w.store, w.maps, Options{Log: w.log, HostAddr: func(a netip.Addr) (bool, error) { return a == addr("192.168.1.2"), nil }})
	require.NoError(t, err)
	w.Manager = m
}

// logged is what the log was told since the restart, one message per line.
func (w *world) logged() string {
	var lines []string
	for _, e := range w.hook.AllEntries() {
		lines = append(lines, e.Message)
	}
	return strings.Join(lines, "\n")
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func spec(frontend string, backends ...string) Spec {
	f, err := ParseFrontend(frontend)
	if err != nil {
		panic(err)
	}
	s := Spec{Frontend: f}
	for _, b := range backends {
		a, err := ParseTarget(b)
		if err != nil {
			panic(err)
		}
		s.Backends = append(s.Backends, Target{Addr: a})
	}
	return s
}

var shop = Network{ID: "n1", Number: 1, Name: "shop", IPv4: true, VIP: true}

// replica makes the n-th container of a name, at 172.20.0.n in sandbox 100+n.
func replica(n int, phase Phase, aliases ...string) (Endpoint, Container) {
	id := fmt.Sprintf("ep%d", n)
	ep := Endpoint{ID: id, Network: "n1", IPv4: netip.AddrFrom4([4]byte{172, 20, 0, byte(n)}), Cookie: uint64(100 + n)}
	c := Container{
		ID: fmt.Sprintf("c%04d", n), Name: fmt.Sprintf("box-%d", n), Phase: phase, Source: SourceDocker,
		Aliases: map[string][]string{id: aliases},
	}
	return ep, c
}

func (w *world) run(t testing.TB, ep Endpoint, c Container) {
	t.Helper()
	require.NoError(t, w.PutEndpoint(ep))
	w.PutContainer(c)
	require.NoError(t, w.Err())
}

// vip is the IPv4 VIP of a name.
func (w *world) vip(t testing.TB, name string) string {
	t.Helper()
	for _, v := range w.List() {
		if v.Name == name {
			return v.Frontends[0].Addr.String()
		}
	}
	t.Fatalf("no service %q", name)
	return ""
}
