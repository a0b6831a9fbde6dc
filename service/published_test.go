// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/bpf"
)

// publishing publishes port 8080 of the host for the n-th replica's port 80, for the sources.
func publishing(n int, sources ...string) (Endpoint, Container) {
	ep, c := replica(n, PhaseReady, "web")
	ep.Ports = []Port{{Host: netip.MustParseAddrPort("0.0.0.0:8080"), Protocol: bpf.ProtocolTCP, Port: 80}}
	for _, s := range sources {
		ep.Sources = append(ep.Sources, netip.MustParsePrefix(s))
	}
	return ep, c
}

// sources are those that the maps have of port 8080.
func (w *world) sources(t *testing.T) []netip.Prefix {
	t.Helper()
	s, ok := w.maps.services[bpf.Frontend{Addr: netip.IPv4Unspecified(), Port: 8080, Protocol: bpf.ProtocolTCP}]
	require.True(t, ok)
	require.True(t, s.Published)
	return s.Sources
}

func TestSourcesOfPublishedPorts(t *testing.T) {
	lan, office := netip.MustParsePrefix("192.168.1.0/24"), netip.MustParsePrefix("10.7.0.0/16")

	t.Run("everybody, unless an endpoint says who", func(t *testing.T) {
		w := newWorld(t)
		_, err := w.AddNetwork(shop)
		require.NoError(t, err)
		ep, c := publishing(1)
		w.run(t, ep, c)
		require.Nil(t, w.sources(t))
		ep.Sources = []netip.Prefix{lan, office, lan}
		require.NoError(t, w.PutEndpoint(ep))
		require.Equal(t, []netip.Prefix{office, lan}, w.sources(t), "in order, each once")
		ep.Sources = nil
		require.NoError(t, w.PutEndpoint(ep))
		require.Nil(t, w.sources(t))
	})
	t.Run("an empty list is nobody", func(t *testing.T) {
		w := newWorld(t)
		_, err := w.AddNetwork(shop)
		require.NoError(t, err)
		ep, c := publishing(1)
		ep.Sources = []netip.Prefix{}
		w.run(t, ep, c)
		require.NotNil(t, w.sources(t))
		require.Empty(t, w.sources(t))
	})
	t.Run("replicas have the same, in any order; others are told what differs", func(t *testing.T) {
		w := newWorld(t)
		_, err := w.AddNetwork(shop)
		require.NoError(t, err)
		ep, c := publishing(1, "192.168.1.0/24", "10.7.0.0/16")
		w.run(t, ep, c)
		ep, c = publishing(2, "10.7.0.0/16", "192.168.1.0/24")
		w.run(t, ep, c)
		ep, _ = publishing(3, "192.168.1.0/24")
		require.EqualError(t, w.PutEndpoint(ep), "endpoint ep3: port 0.0.0.0:8080/tcp is published by the container box-1 already, "+
			"for 10.7.0.0/16, 192.168.1.0/24 and not for 192.168.1.0/24: give both the same publish_sources")
		ep, _ = publishing(3)
		require.ErrorContains(t, w.PutEndpoint(ep), "and not for everybody")
		ep.Sources = []netip.Prefix{}
		require.ErrorContains(t, w.PutEndpoint(ep), "and not for nobody")
	})
	t.Run("what somebody else let in is put right", func(t *testing.T) {
		w := newWorld(t)
		_, err := w.AddNetwork(shop)
		require.NoError(t, err)
		ep, c := publishing(1, "192.168.1.0/24")
		w.run(t, ep, c)
		writes := w.maps.writes
		require.NoError(t, w.Reconcile())
		require.Equal(t, writes, w.maps.writes, "nothing differs")
		for f, s := range w.maps.services {
			if s.Published {
				s.Sources = append(s.Sources, netip.MustParsePrefix("::/0"))
				w.maps.services[f] = s
			}
		}
		require.NoError(t, w.Reconcile())
		require.Equal(t, []netip.Prefix{lan}, w.sources(t))
	})
}

func TestPortsAtAnEndpointsOwnAddress(t *testing.T) {
	w := newWorld(t)
	_, err := w.AddNetwork(shop)
	require.NoError(t, err)
	ep, c := publishing(1)
	w.run(t, ep, c)
	for n := 2; n <= 3; n++ { // routed: each has the port at its own address, and the host's is another
		ep, c := replica(n, PhaseReady, "other")
		ep.Ports = []Port{{Host: netip.AddrPortFrom(ep.IPv4, 8080), Protocol: bpf.ProtocolTCP, Port: 8080}}
		w.run(t, ep, c)
	}
	require.NoError(t, w.PutEndpoint(ep), "the port of all of the host's addresses is put again")
	ep, _ = replica(4, PhaseReady, "third")
	ep.Ports = []Port{{Host: netip.MustParseAddrPort("0.0.0.0:8080"), Protocol: bpf.ProtocolTCP, Port: 81}}
	require.ErrorContains(t, w.PutEndpoint(ep), "is published by the container box-1 already")
}

// led are the addresses that port 8080 of all addresses leads to.
func (w *world) led(t *testing.T) []netip.Addr {
	t.Helper()
	s, ok := w.maps.services[bpf.Frontend{Addr: netip.IPv4Unspecified(), Port: 8080, Protocol: bpf.ProtocolTCP}]
	require.True(t, ok)
	out := []netip.Addr{}
	for _, id := range s.Slots {
		out = append(out, w.maps.backends[id].Addr)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

func TestWhoSharesAPort(t *testing.T) {
	const taken = "is published by the container box-1 already: choose another, or stop it"
	begin := func(t *testing.T, alias string) (*world, Endpoint) {
		w := newWorld(t)
		_, err := w.AddNetwork(shop)
		require.NoError(t, err)
		ep, c := publishing(1)
		ep.PortsSince = time.Unix(2, 0)
		if alias == "" {
			c.Aliases[ep.ID] = nil
		}
		w.run(t, ep, c)
		require.Equal(t, []netip.Addr{ep.IPv4}, w.led(t))
		return w, ep
	}
	t.Run("replicas do, as soon as they are known to be some", func(t *testing.T) {
		w, first := begin(t, "web")
		ep, c := publishing(0) // its id comes first, and it comes second
		ep.PortsSince = time.Unix(3, 0)
		require.NoError(t, w.PutEndpoint(ep))
		require.Equal(t, []netip.Addr{first.IPv4}, w.led(t))
		w.PutContainer(c)
		require.ElementsMatch(t, []netip.Addr{ep.IPv4, first.IPv4}, w.led(t))
		w.Gone(first.ID)
		require.Equal(t, []netip.Addr{ep.IPv4}, w.led(t))
		require.NoError(t, w.Unpublish(first.ID))
		require.NoError(t, w.Unpublish(first.ID), "again")
		require.Equal(t, []netip.Addr{ep.IPv4}, w.led(t))
		require.NoError(t, w.Unpublish(ep.ID))
		require.NotContains(t, w.maps.services, bpf.Frontend{Addr: netip.IPv4Unspecified(), Port: 8080, Protocol: bpf.ProtocolTCP})
	})
	t.Run("one that turns out to be no replica gets nothing, and the log says so", func(t *testing.T) {
		w, first := begin(t, "web")
		ep, c := publishing(0)
		ep.PortsSince = time.Unix(3, 0)
		c.Aliases[ep.ID] = []string{"api"}
		w.run(t, ep, c)
		require.Equal(t, []netip.Addr{first.IPv4}, w.led(t))
		require.Contains(t, w.logged(), "leads to it alone")
		w.Gone(first.ID)
		require.NoError(t, w.Unpublish(first.ID))
		require.Equal(t, []netip.Addr{ep.IPv4}, w.led(t), "it is the first now")
	})
	t.Run("nobody does with a container that has no service name", func(t *testing.T) {
		w, _ := begin(t, "")
		ep, _ := publishing(2)
		require.ErrorContains(t, w.PutEndpoint(ep), taken)
	})
	for _, test := range []struct {
		name   string
		change func(*Endpoint)
	}{
		{"another network", func(e *Endpoint) { e.Network = "other" }},
		{"another port of the container", func(e *Endpoint) { e.Ports[0].Port = 81 }},
		{"one address of all", func(e *Endpoint) { e.Ports[0].Host = netip.MustParseAddrPort("127.0.0.1:8080") }},
	} {
		t.Run("not with "+test.name, func(t *testing.T) {
			w, first := begin(t, "web")
			ep, _ := publishing(2)
			test.change(&ep)
			require.ErrorContains(t, w.PutEndpoint(ep), taken)
			require.Equal(t, []netip.Addr{first.IPv4}, w.led(t))
		})
	}
	t.Run("other protocols, families and ports are other ports", func(t *testing.T) {
		w, _ := begin(t, "web")
		ep, _ := publishing(2)
		ep.Ports = []Port{
			{Host: netip.MustParseAddrPort("0.0.0.0:8080"), Protocol: bpf.ProtocolUDP, Port: 81},
			{Host: netip.MustParseAddrPort("[::]:8080"), Protocol: bpf.ProtocolTCP, Port: 81},
			{Host: netip.MustParseAddrPort("0.0.0.0:8081"), Protocol: bpf.ProtocolTCP, Port: 81},
		}
		require.NoError(t, w.PutEndpoint(ep))
	})
}

// After a start a port leads where it has led, whoever is told of first, until all are told of.
func TestASharedPortOverAStart(t *testing.T) {
	for _, first := range []Phase{PhaseReady, PhaseUnhealthy} {
		w := newWorld(t)
		_, err := w.AddNetwork(shop)
		require.NoError(t, err)
		one, c1 := publishing(1)
		two, c2 := publishing(2)
		one.PortsSince, two.PortsSince = time.Unix(2, 0), time.Unix(3, 0)
		c1.Phase = first
		w.run(t, one, c1)
		w.run(t, two, c2)
		want := []netip.Addr{one.IPv4, two.IPv4}
		if first != PhaseReady {
			want = want[1:]
		}
		require.Equal(t, want, w.led(t))
		port := bpf.Frontend{Addr: netip.IPv4Unspecified(), Port: 8080, Protocol: bpf.ProtocolTCP}
		ids := unique(w.maps.services[port].Slots)

		w.restart(t)
		_, err = w.AddNetwork(shop)
		require.NoError(t, err)
		require.NoError(t, w.PutEndpoint(one))
		require.Equal(t, want, w.led(t), "the engine has told of nobody")
		require.NoError(t, w.PutEndpoint(two))
		require.Equal(t, want, w.led(t))
		w.PutContainer(c2)
		require.Equal(t, want, w.led(t), "of the second alone")
		w.PutContainer(c1)
		require.Equal(t, want, w.led(t))
		require.NoError(t, w.Sync())
		require.Equal(t, want, w.led(t))
		require.Equal(t, ids, unique(w.maps.services[port].Slots), "under their ids, which flows of datagrams know")

		// who publishes it after the start is served before the engine tells
		three, _ := publishing(3)
		three.Ports[0].Host = netip.MustParseAddrPort("0.0.0.0:8081")
		three.PortsSince = time.Now()
		w.restart(t)
		_, err = w.AddNetwork(shop)
		require.NoError(t, err)
		require.NoError(t, w.PutEndpoint(three))
		require.Contains(t, w.maps.services, bpf.Frontend{Addr: netip.IPv4Unspecified(), Port: 8081, Protocol: bpf.ProtocolTCP})
	}
}

func TestPublishedNames(t *testing.T) {
	w := newWorld(t)
	_, all := w.PublishedNames(shop.ID)
	require.False(t, all, "a network that is not known")
	_, err := w.AddNetwork(shop)
	require.NoError(t, err)
	ep, c := publishing(1)
	c.Aliases[ep.ID] = []string{"Web", c.Name}
	w.run(t, ep, c)
	other, oc := replica(2, PhaseReady, "db") // without a port
	w.run(t, other, oc)
	names, all := w.PublishedNames(shop.ID)
	require.True(t, all)
	require.Equal(t, []string{"web"}, names)

	c.Labels = map[string]string{"mustang.service": "front"}
	w.PutContainer(c)
	_, all = w.PublishedNames(shop.ID)
	require.False(t, all, "the engine does not know the label's name")

	oc.Aliases[other.ID] = []string{"front"}
	w.PutContainer(oc)
	names, all = w.PublishedNames(shop.ID)
	require.True(t, all, "but that of another's alias")
	require.Equal(t, []string{"front", "web"}, names)
	third, tc := publishing(3)
	w.run(t, third, tc)
	names, all = w.PublishedNames(shop.ID)
	require.True(t, all)
	require.Equal(t, []string{"front", "web"}, names, "each once")
	fourth, _ := publishing(4)
	require.NoError(t, w.PutEndpoint(fourth))
	_, all = w.PublishedNames(shop.ID)
	require.False(t, all, "one that nobody has told of")
}

func TestAThousandPorts(t *testing.T) {
	for _, test := range []struct {
		name     string
		port     uint16
		backends int
	}{
		{"kept, have one backend", 20000, 1},
		{"translated, have one each", 30000, 1000},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			_, err := w.AddNetwork(shop)
			require.NoError(t, err)
			ep, c := replica(1, PhaseReady)
			ep.Ports = []Port{{Host: netip.MustParseAddrPort("0.0.0.0:20000"), Protocol: bpf.ProtocolTCP, Port: test.port, Count: 1000}}
			w.run(t, ep, c)
			require.Len(t, w.maps.services, 1000)
			require.Len(t, w.maps.backends, test.backends)
			last := w.maps.services[bpf.Frontend{Addr: netip.IPv4Unspecified(), Port: 20999, Protocol: bpf.ProtocolTCP}]
			require.Contains(t, []uint16{0, test.port + 999}, w.maps.backends[last.Slots[0]].Port)
			require.Less(t, w.backends.next, w.reserved, "every id is remembered as given")

			other, _ := replica(2, PhaseReady)
			other.Ports = []Port{{Host: netip.MustParseAddrPort("127.0.0.1:20999"), Protocol: bpf.ProtocolTCP, Port: 80}}
			require.ErrorContains(t, w.PutEndpoint(other), "port 0.0.0.0:20999/tcp is published by the container box-1 already")

			w.Gone(ep.ID)
			writes := w.maps.writes
			w.Gone(ep.ID)
			require.Equal(t, writes, w.maps.writes, "told again")
			require.NoError(t, w.Unpublish(ep.ID))
			require.NoError(t, w.PutEndpoint(other), "nothing is left of them")
			require.NoError(t, w.RemoveEndpoint(other.ID))
			require.NoError(t, w.RemoveEndpoint(ep.ID))
			require.Empty(t, w.maps.services)
			require.Empty(t, w.maps.backends)
			require.Empty(t, w.portAddrs)
		})
	}
	t.Run("some of which the maps refuse at first", func(t *testing.T) {
		w := newWorld(t)
		_, err := w.AddNetwork(shop)
		require.NoError(t, err)
		ep, _ := replica(1, PhaseReady)
		ep.Ports = []Port{{Host: netip.MustParseAddrPort("0.0.0.0:20000"), Protocol: bpf.ProtocolTCP, Port: 20000, Count: 1000}}
		for _, op := range []string{"put service", "delete service"} {
			calls := 0
			w.maps.fail = func(what string) bool { calls++; return what == op && calls%3 == 0 }
			if op == "put service" {
				require.ErrorIs(t, w.PutEndpoint(ep), errInjected)
				require.ErrorContains(t, w.PutEndpoint(ep), "more)")
			} else {
				require.ErrorIs(t, w.Unpublish(ep.ID), errInjected)
			}
			require.NotEmpty(t, w.maps.services)
			w.maps.fail = nil
			require.NoError(t, w.Reconcile())
		}
		require.Empty(t, w.maps.services)
	})
}

// TestWhoIsExpected has containers that are being started, whose names are known from before.
func TestWhoIsExpected(t *testing.T) {
	start := func(t *testing.T, w *world, n int, names ...string) error {
		t.Helper()
		ep, c := replica(n, PhaseStarting, names...)
		require.NoError(t, w.PutEndpoint(ep))
		require.False(t, w.Known(ep.ID))
		w.Expect(map[string]Container{ep.ID: c, "nobody": c}, nil)
		require.True(t, w.Known(ep.ID))
		ep.Ports = []Port{{Host: netip.MustParseAddrPort("0.0.0.0:8080"), Protocol: bpf.ProtocolTCP, Port: 80}}
		return w.PutEndpoint(ep)
	}
	for name, c := range map[string]struct {
		first, second []string
		label         string // of the second, mustang.service
		refused       bool
	}{
		"replicas":                   {first: []string{"web"}, second: []string{"www", "web"}},
		"a replica by its label":     {first: []string{"web"}, label: "web"},
		"another service":            {first: []string{"web"}, second: []string{"api"}, refused: true},
		"another service's label":    {first: []string{"web"}, label: "api", refused: true},
		"none beside a service":      {first: []string{"web"}, refused: true},
		"a service beside none":      {second: []string{"web"}, refused: true},
		"two that are of no service": {refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			for _, running := range []bool{true, false} {
				w := newWorld(t)
				_, err := w.AddNetwork(shop)
				require.NoError(t, err)
				require.NoError(t, start(t, w, 1, c.first...))
				if running {
					_, facts := replica(1, PhaseReady, c.first...)
					w.PutContainer(facts)
				}
				ep, facts := replica(2, PhaseStarting, c.second...)
				if c.label != "" {
					facts.Labels = map[string]string{"mustang.service": c.label}
				}
				require.NoError(t, w.PutEndpoint(ep))
				w.Expect(map[string]Container{ep.ID: facts}, nil)
				ep.Ports = []Port{{Host: netip.MustParseAddrPort("0.0.0.0:8080"), Protocol: bpf.ProtocolTCP, Port: 80}}
				err = w.PutEndpoint(ep)
				if c.refused {
					require.EqualError(t, err, "endpoint ep2: port 0.0.0.0:8080/tcp is published by the container box-1 already: choose another, or stop it")
					continue
				}
				require.NoError(t, err)
				require.Len(t, w.led(t), 1, "the second gets flows when it runs")
				w.PutContainer(facts)
				require.NoError(t, w.PutEndpoint(ep), "put again with what it is known by")
			}
		})
	}
}
