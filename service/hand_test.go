// SPDX-License-Identifier: Apache-2.0

package service

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/state"
)

func TestArticle(t *testing.T) {
	w := newWorld(t)
	v, err := w.Add(spec("10.96.0.100:5201", "192.168.10.10:5201"))
	require.NoError(t, err)
	want := View{
		ID: 1, Source: SourceHand, Frontends: []bpf.Frontend{{Addr: addr("10.96.0.100"), Port: 5201}},
		Backends: []BackendView{{ID: 1, Addr: netip.MustParseAddrPort("192.168.10.10:5201"), Weight: 1, State: PhaseReady, Active: true}},
	}
	require.Empty(t, cmp.Diff(want, v, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})))
	w.maps.is(
		"10.96.0.100 net=0 ->",
		"10.96.0.100:5201 net=0 -> 192.168.10.10:5201@0",
	)
	require.NoError(t, w.Remove("10.96.0.100:5201"))
	w.maps.is()
	require.Empty(t, w.List())
}

func TestRemoveByReference(t *testing.T) {
	for _, ref := range []string{"1", "db", "10.96.0.7:53", "tcp:10.96.0.7:53", "TCP:10.96.0.7:53"} {
		t.Run(ref, func(t *testing.T) {
			w := newWorld(t)
			s := spec("tcp:10.96.0.7:53", "10.1.0.1")
			s.Name = "db"
			_, err := w.Add(s)
			require.NoError(t, err)
			require.ErrorIs(t, w.Remove("udp:10.96.0.7:53"), ErrNotFound)
			require.ErrorIs(t, w.Remove("7"), ErrNotFound)
			require.ErrorIs(t, w.Remove("nobody"), ErrNotFound)
			require.NoError(t, w.Remove(ref))
			w.maps.is()
		})
	}
	t.Run("v6", func(t *testing.T) {
		w := newWorld(t)
		_, err := w.Add(spec("[fd6d:7374:10::7]:53", "[fd00::1]:53"))
		require.NoError(t, err)
		require.NoError(t, w.Remove("[fd6d:7374:10::7]:53"))
		w.maps.is()
	})
	t.Run("ambiguous", func(t *testing.T) {
		w := newWorld(t)
		for _, f := range []string{"tcp:10.96.0.7:53", "udp:10.96.0.7:53"} {
			_, err := w.Add(spec(f, "10.1.0.1"))
			require.NoError(t, err)
		}
		w.maps.is("10.96.0.7 net=0 ->", "tcp:10.96.0.7:53 net=0 -> 10.1.0.1@0", "udp:10.96.0.7:53 net=0 -> 10.1.0.1@0")
		require.ErrorContains(t, w.Remove("10.96.0.7:53"), "name the protocol")
		require.NoError(t, w.Remove("tcp:10.96.0.7:53"))
		w.maps.is("10.96.0.7 net=0 ->", "udp:10.96.0.7:53 net=0 -> 10.1.0.1@0")
	})
}

func TestAddRefuses(t *testing.T) {
	w := newWorld(t)
	_, err := w.AddNetwork(shop)
	require.NoError(t, err)
	ep, c := replica(1, PhaseReady, "web")
	w.run(t, ep, c)
	first := spec("10.96.0.1:80", "10.1.0.1:80")
	first.Name = "first"
	_, err = w.Add(first)
	require.NoError(t, err)
	named := spec("10.96.0.22:80")
	named.Name = "first"
	weight := spec("10.96.0.2:80", "10.1.0.1")
	weight.Backends[0].Weight = 101
	tests := map[string]struct {
		spec Spec
		want string
	}{
		"port 0 with a protocol":   {spec("tcp:10.96.0.2", "10.1.0.1"), "port 0 stands for every port"},
		"backend port, no port":    {spec("10.96.0.2", "10.1.0.1:80"), "leave the backend's port out"},
		"wrong family":             {spec("10.96.0.2:80", "[fd00::1]:80"), "another family"},
		"duplicate frontend":       {spec("10.96.0.1:80", "10.1.0.2"), "exists already, with id"},
		"duplicate name":           {named, "belongs to service"},
		"duplicate backend":        {spec("10.96.0.2:80", "10.1.0.1", "10.1.0.1"), "named twice"},
		"weight":                   {weight, "use 1 to 100"},
		"VIP of the host":          {spec("192.168.1.2:80", "10.1.0.1"), "address of this host"},
		"VIP of a backend":         {spec("10.1.0.1:80", "10.1.0.9"), "it is a backend of service"},
		"VIP of an endpoint":       {spec("172.20.0.1:80", "10.1.0.1"), "address of an endpoint"},
		"multicast":                {spec("224.0.0.1:80", "10.1.0.1"), "multicast"},
		"loopback":                 {spec("127.0.0.1:80", "10.1.0.1"), "loopback"},
		"mapped loopback":          {spec("[::ffff:127.0.0.1]:80", "10.1.0.1"), "loopback"},
		"unspecified":              {spec("0.0.0.0:80", "10.1.0.1"), "unspecified"},
		"broadcast":                {spec("255.255.255.255:80", "10.1.0.1"), "broadcast"},
		"block of a network":       {spec("10.96.1.9:80", "10.1.0.1"), "belongs to network shop"},
		"backend is a VIP":         {spec("10.96.0.2:80", "10.96.0.1:80"), "is a VIP"},
		"backend is a name's VIP":  {spec("10.96.0.2:80", w.vip(t, "web")), "is a VIP"},
		"backend is its own VIP":   {spec("10.96.0.2:80", "10.96.0.2:81"), "is a VIP"},
		"protocol":                 {Spec{Frontend: bpf.Frontend{Addr: addr("10.96.0.2"), Port: 1, Protocol: 132}}, "use tcp, udp or any"},
		"outside the pools":        {spec("8.8.8.8:80", "10.1.0.1"), "outside the service pools (10.96.0.0/16, fd6d:7374:10::/96): choose an address of 10.96.0.0/24, or widen service_pools in mustang.toml"},
		"outside the pools, IPv6":  {spec("[fd00::7]:80", "[fd00::1]:80"), "choose an address of fd6d:7374:10::/112, or widen service_pools"},
		"no address":               {Spec{Frontend: bpf.Frontend{Port: 1}}, "missing"},
		"name that looks like id":  {Spec{Name: "12", Frontend: first.Frontend}, "read as an id"},
		"name that looks like VIP": {Spec{Name: "1.2.3.4", Frontend: first.Frontend}, "read as an address"},
	}
	before, writes := w.maps.dump(), w.maps.writes
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := w.Add(tt.spec)
			require.ErrorContains(t, err, tt.want)
			if name != "duplicate frontend" && name != "VIP of a backend" && name != "duplicate name" && name != "backend is a VIP" {
				_, _, _, _, err = w.Apply([]Spec{tt.spec})
				require.ErrorContains(t, err, tt.want)
			}
		})
	}
	require.Equal(t, before, w.maps.dump())
	require.Equal(t, writes, w.maps.writes)
	require.ErrorContains(t, w.PutEndpoint(Endpoint{ID: "x", IPv4: addr("10.96.0.1")}), "VIP of a hand-made service")
	require.ErrorContains(t, w.PutEndpoint(Endpoint{ID: "x", IPv4: addr("10.96.1.200")}), "VIPs of network shop")
	require.ErrorContains(t, w.Remove(w.vip(t, "web")), "comes from docker: it goes with its network shop")
	require.ErrorContains(t, w.Remove("Web"), "(web) comes from docker: it goes with its network shop")
}

func TestRefusalsHaveAClass(t *testing.T) {
	w := newWorld(t)
	_, err := w.AddNetwork(shop)
	require.NoError(t, err)
	ep, c := replica(1, PhaseReady, "web")
	w.run(t, ep, c)
	for _, f := range []string{"tcp:10.96.0.7:53", "udp:10.96.0.7:53"} {
		_, err := w.Add(spec(f, "10.1.0.1"))
		require.NoError(t, err)
	}
	add := func(frontend string, backends ...string) error {
		_, err := w.Add(spec(frontend, backends...))
		return err
	}
	heavy := spec("10.96.0.2:80", "10.1.0.1")
	heavy.Backends[0].Weight = 101
	_, _, _, _, errApply := w.Apply([]Spec{heavy})
	_, _, _, _, errTwice := w.Apply([]Spec{spec("10.96.0.2:80"), spec("10.96.0.2:80")})
	tests := []struct {
		err  error
		want string
	}{
		{add("127.0.0.1:80"), "invalid"},
		{add("8.8.8.8:80"), "invalid"},
		{add("10.96.0.2:80", "[fd00::1]:80"), "invalid"},
		{errApply, "invalid"},
		{errTwice, "invalid"},
		{w.Remove("10.96.0.7:53"), "invalid"},
		{CheckEndpointOptions(map[string]string{"mustang.weight": "0"}), "invalid"},
		{add("tcp:10.96.0.7:53", "10.1.0.1"), "conflict"},
		{add("192.168.1.2:80"), "conflict"},
		{add("172.20.0.1:80"), "conflict"},
		{add("10.96.1.9:80"), "conflict"},
		{add("10.1.0.1:80"), "conflict"},
		{add("10.96.0.2:80", "10.96.0.7:80"), "conflict"},
		{w.Remove(w.vip(t, "web")), "conflict"},
		{w.PutEndpoint(Endpoint{ID: "x", IPv4: addr("10.96.0.7")}), "conflict"},
		{w.Remove("nobody"), "not found"},
		{w.Drain("nobody", false), "not found"},
		{w.Drain("10.9.9.9", false), "not found"},
	}
	for i, tt := range tests {
		require.Error(t, tt.err, "%d", i)
		require.Equal(t, tt.want, class(tt.err), "%s", tt.err)
	}
}

// class is what the API tells errors apart by.
func class(err error) string {
	var (
		invalid     interface{ InvalidParameter() }
		conflict    interface{ Conflict() }
		notFound    interface{ NotFound() }
		unavailable interface{ Unavailable() }
	)
	switch {
	case errors.As(err, &invalid):
		return "invalid"
	case errors.As(err, &conflict):
		return "conflict"
	case errors.As(err, &notFound):
		return "not found"
	case errors.As(err, &unavailable):
		return "unavailable"
	}
	return "fault"
}

func TestNoVIPWhileTheHostsAddressesAreUnknown(t *testing.T) {
	w := newWorld(t)
	w.hostAddr = func(netip.Addr) (bool, error) { return false, errInjected }
	_, err := w.Add(spec("10.96.0.1:80", "10.1.0.1"))
	require.ErrorIs(t, err, errInjected)
	require.Equal(t, "fault", class(err))
	_, _, _, _, err = w.Apply([]Spec{spec("10.96.0.1:80", "10.1.0.1")})
	require.ErrorIs(t, err, errInjected)
	w.maps.is()
}

func TestAListAsksOnceForEachVIP(t *testing.T) {
	w := newWorld(t)
	var asked []netip.Addr
	w.hostAddr = func(a netip.Addr) (bool, error) { asked = append(asked, a); return false, nil }
	_, _, _, _, err := w.Apply([]Spec{spec("10.96.0.1:80", "10.1.0.1"), spec("10.96.0.2:80", "10.1.0.1"), spec("10.96.0.1:81", "10.1.0.1")})
	require.NoError(t, err)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("10.96.0.2")}, asked)
}

func TestServicesOutsideThePoolsStay(t *testing.T) {
	w := newWorld(t)
	old := spec("192.0.2.7:80", "10.1.0.1:80")
	old.Backends[0].Weight = 1
	require.NoError(t, w.store.Update(func(tx state.Tx) error {
		return tx.Put(bucketHand, handKey(4), handRecord{4, old})
	}))
	w.restart(t)
	require.NoError(t, w.Sync())
	require.Contains(t, w.logged(), "hand-made services outside the service pools")
	want := []string{"192.0.2.7 net=0 ->", "192.0.2.7:80 net=0 -> 10.1.0.1:80@0"}
	w.maps.is(want...)

	// The list can be applied as it is, with other backends too, but there is no second such service.
	old.Backends = append(old.Backends, Target{Addr: netip.MustParseAddrPort("10.1.0.2:80")})
	_, changed, _, _, err := w.Apply([]Spec{old})
	require.NoError(t, err)
	require.Equal(t, 1, changed)
	_, err = w.Add(spec("192.0.2.7:81", "10.1.0.1:81"))
	require.ErrorContains(t, err, "outside the service pools")
	_, _, _, _, err = w.Apply([]Spec{old, spec("192.0.2.8:80")})
	require.ErrorContains(t, err, "192.0.2.8 cannot be a VIP: it is outside the service pools")

	require.NoError(t, w.Remove("4"))
	w.maps.is()
	_, _, _, _, err = w.Apply([]Spec{old})
	require.ErrorContains(t, err, "outside the service pools")
	w.restart(t)
	require.Empty(t, w.logged())
}

// specOf is what Add or Apply would make a hand-made service from.
func specOf(v View) Spec {
	s := Spec{Name: v.Name, Affinity: v.Affinity, Frontend: v.Frontends[0]}
	for _, b := range v.Backends {
		s.Backends = append(s.Backends, Target{Addr: b.Addr, Weight: b.Weight, Drain: b.State == PhaseDraining})
	}
	return s
}

func TestApply(t *testing.T) {
	w := newWorld(t)
	keep, change := spec("10.96.0.1:80", "10.1.0.1:80"), spec("10.96.0.2:80", "10.1.0.2:80")
	added, changed, removed, unchanged, err := w.Apply([]Spec{keep, change, spec("10.96.0.3", "10.1.0.3")})
	require.NoError(t, err)
	require.Equal(t, [4]int{3, 0, 0, 0}, [4]int{added, changed, removed, unchanged})

	change.Backends[0].Weight = 3
	change.Backends = append(change.Backends, Target{Addr: netip.MustParseAddrPort("10.1.0.9:80")})
	set := []Spec{keep, change, spec("10.96.0.4:80")}
	added, changed, removed, unchanged, err = w.Apply(set)
	require.NoError(t, err)
	require.Equal(t, [4]int{1, 1, 1, 1}, [4]int{added, changed, removed, unchanged})
	want := []string{
		"10.96.0.1 net=0 ->", "10.96.0.1:80 net=0 -> 10.1.0.1:80@0",
		"10.96.0.2 net=0 ->", "10.96.0.2:80 net=0 -> 10.1.0.2:80@0x3 10.1.0.9:80@0",
		"10.96.0.4 net=0 ->", "10.96.0.4:80 net=0 ->",
	}
	w.maps.is(want...)

	// What the listing prints changes nothing when it is applied.
	var round []Spec
	for _, v := range w.List() {
		round = append(round, specOf(v))
	}
	writes := w.maps.writes
	_, _, _, unchanged, err = w.Apply(round)
	require.NoError(t, err)
	require.Equal(t, 3, unchanged)
	require.Equal(t, writes, w.maps.writes)

	// One bad spec and nothing happens.
	_, _, _, _, err = w.Apply([]Spec{spec("10.96.0.9:80", "10.1.0.1"), spec("127.0.0.1:80")})
	require.Error(t, err)
	w.maps.is(want...)

	_, _, removed, _, err = w.Apply(nil)
	require.NoError(t, err)
	require.Equal(t, 3, removed)
	w.maps.is()
}

func TestDrainByHand(t *testing.T) {
	w := newWorld(t)
	_, err := w.Add(spec("10.96.0.1:80", "10.1.0.1:8080", "10.1.0.2"))
	require.NoError(t, err)
	both := "10.96.0.1:80 net=0 -> 10.1.0.1:8080@0 10.1.0.2@0"
	for _, ref := range []string{"10.1.0.2", "10.1.0.2:80"} {
		require.NoError(t, w.Drain(ref, false))
		w.maps.is("10.96.0.1 net=0 ->", "10.96.0.1:80 net=0 -> 10.1.0.1:8080@0", "idle 10.1.0.2")
		require.NoError(t, w.Drain(ref, false), "draining twice is no error")
		w.restart(t)
		require.NoError(t, w.Sync())
		require.Equal(t, PhaseDraining, w.List()[0].Backends[1].State)
		require.NoError(t, w.Drain(ref, true))
		w.maps.is("10.96.0.1 net=0 ->", both)
	}
	require.ErrorIs(t, w.Drain("10.1.0.2:81", false), ErrNotFound)
	require.ErrorIs(t, w.Drain("nobody", false), ErrNotFound)
	// The last one keeps serving: draining is a tier, not an outage.
	require.NoError(t, w.Drain("10.1.0.1", false))
	require.NoError(t, w.Drain("10.1.0.2", false))
	w.maps.is("10.96.0.1 net=0 ->", both)
}

func TestRestartKeepsIDsAndWritesNothing(t *testing.T) {
	w := newWorld(t)
	_, err := w.AddNetwork(shop)
	require.NoError(t, err)
	for n := range 3 {
		ep, c := replica(n+1, PhaseReady, "web", "www")
		c.Labels = map[string]string{"mustang.weight": fmt.Sprint(n + 1)}
		w.run(t, ep, c)
	}
	_, _, _, _, err = w.Apply([]Spec{spec("10.96.0.1:80", "10.1.0.1"), spec("10.96.0.2", "10.1.0.2")})
	require.NoError(t, err)
	before, maps, writes := w.List(), w.maps.dump(), w.maps.writes

	w.restart(t)
	_, err = w.AddNetwork(shop)
	require.NoError(t, err)
	for n := range 3 {
		ep, c := replica(3-n, PhaseReady, "web", "www")
		c.Labels = map[string]string{"mustang.weight": fmt.Sprint(3 - n)}
		w.run(t, ep, c)
	}
	require.NoError(t, w.Sync())
	require.NoError(t, w.Reconcile())
	require.Equal(t, maps, w.maps.dump())
	require.Equal(t, writes, w.maps.writes)
	require.Empty(t, cmp.Diff(before, w.List(), cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})))
}

func TestReconcileRepairs(t *testing.T) {
	w := newWorld(t)
	_, err := w.Add(spec("10.96.0.1:80", "10.1.0.1", "10.1.0.2"))
	require.NoError(t, err)
	want := w.maps.dump()
	clear(w.maps.services)
	clear(w.maps.backends) // as after a reboot
	require.NoError(t, w.Reconcile())
	require.Equal(t, want, w.maps.dump())

	delete(w.maps.backends, 1)
	foreign := bpf.Frontend{Addr: addr("9.9.9.9")}
	w.maps.services[foreign] = bpf.Service{Frontend: foreign, ID: 9}
	w.maps.backends[77] = bpf.Backend{ID: 77, Addr: addr("9.9.9.8")}
	require.NoError(t, w.Reconcile())
	require.Equal(t, want, w.maps.dump())
}

func TestFailedWritesAreTriedAgain(t *testing.T) {
	for _, op := range []string{"put backend", "put service", "delete service", "delete backend"} {
		t.Run(op, func(t *testing.T) {
			w := newWorld(t)
			_, err := w.Add(spec("10.96.0.1:80", "10.1.0.1"))
			require.NoError(t, err)
			w.maps.fail = func(what string) bool { return what == op }
			_, _, _, _, err = w.Apply([]Spec{spec("10.96.0.2:80", "10.1.0.2")})
			require.ErrorIs(t, err, errInjected)
			require.ErrorIs(t, w.Err(), errInjected)
			w.maps.fail = nil
			_, err = w.Add(spec("10.96.0.3:80"))
			require.NoError(t, err)
			require.NoError(t, w.Err())
			w.maps.is("10.96.0.2 net=0 ->", "10.96.0.2:80 net=0 -> 10.1.0.2@0", "10.96.0.3 net=0 ->", "10.96.0.3:80 net=0 ->")
		})
	}
}

func TestLostStoreAdoptsIDsFromMaps(t *testing.T) {
	w := newWorld(t)
	_, _, _, _, err := w.Apply([]Spec{spec("10.96.0.1:80", "10.1.0.1"), spec("10.96.0.2:80", "10.1.0.2")})
	require.NoError(t, err)
	v, err := w.Add(spec("10.96.0.3:80", "10.1.0.3"))
	require.NoError(t, err)
	writes := w.maps.writes
	w.store = state.Memory()
	w.restart(t)
	again, err := w.Add(spec("10.96.0.3:80", "10.1.0.3"))
	require.NoError(t, err)
	require.Equal(t, v, again)
	require.Equal(t, writes, w.maps.writes)
}

// thousands is a desired set of n services with three backends each.
func thousands(n int) []Spec {
	specs := make([]Spec, n)
	for i := range specs {
		vip := netip.AddrFrom4([4]byte{10, 96, 0, byte(1 + i%200)})
		specs[i].Frontend = bpf.Frontend{Addr: vip, Port: uint16(1000 + i/200), Protocol: bpf.ProtocolTCP}
		for b := range 3 {
			a := netip.AddrFrom4([4]byte{10, 1 + byte(b), byte(i >> 8), byte(i)})
			specs[i].Backends = append(specs[i].Backends, Target{Addr: netip.AddrPortFrom(a, 8080)})
		}
	}
	return specs
}

func TestApplyTenThousand(t *testing.T) {
	w := newWorld(t)
	added, _, _, _, err := w.Apply(thousands(10_000))
	require.NoError(t, err)
	require.Equal(t, 10_000, added)
	_, _, _, unchanged, err := w.Apply(thousands(10_000))
	require.NoError(t, err)
	require.Equal(t, 10_000, unchanged)
}

// BenchmarkApply10k tells what 10,000 services with three backends cost: B/op is what a change of
// everything allocates, live-B what stays.
func BenchmarkApply10k(b *testing.B) {
	specs := thousands(10_000)
	b.ReportAllocs()
	for b.Loop() {
		m, err := New(state.Memory(), nullMaps{}, Options{})
		require.NoError(b, err)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		_, _, _, _, err = m.Apply(specs)
		require.NoError(b, err)
		m.store = nil // on a host it is a file
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc)), "live-B")
		runtime.KeepAlive(m)
	}
}

// nullMaps takes everything and keeps nothing.
type nullMaps struct{}

func (nullMaps) Services() ([]bpf.Service, error) { return nil, nil }
func (nullMaps) Backends() ([]bpf.Backend, error) { return nil, nil }
func (nullMaps) PutService(bpf.Service) error     { return nil }
func (nullMaps) DeleteService(bpf.Frontend) error { return nil }
func (nullMaps) PutBackend(bpf.Backend) error     { return nil }
func (nullMaps) DeleteBackend(uint32) error       { return nil }
