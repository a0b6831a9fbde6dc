// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"
	"testing"

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
		require.EqualError(t, w.PutEndpoint(ep), "endpoint ep3: port tcp:0.0.0.0:8080 is published by the container box-1 already, "+
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
