// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/driver/link"
)

var off = map[string]string{"ebpf": "off"}

func (w *world) createOff(id string, number int, more ...string) {
	w.t.Helper()
	opts := map[string]string{"ebpf": "off"}
	for i := 0; i < len(more); i += 2 {
		opts[more[i]] = more[i+1]
	}
	require.NoError(w.t, w.CreateNetwork(ctx, network(id, number, opts)))
}

func TestANetworkWithoutEBPF(t *testing.T) {
	w := newWorld(t)
	empty := w.lines()
	w.createOff(net1, 1)
	networkOnly := w.lines()
	w.createEndpoint(ep1, net1, 1, 2)
	w.kernel.addNetns(box)
	hop := func(to, via string) Hop { return Hop{netip.MustParsePrefix(to), netip.MustParseAddr(via)} }
	require.Equal(t, Join{SrcName: "mspe1e1e1e1e1e", DstPrefix: "eth", Hops: []Hop{
		hop("10.96.1.0/24", "10.1.0.1"), hop("10.96.0.0/24", "10.1.0.1"),
		hop("fd6d:7374:10::1:0/112", "fd00:1::1"), hop("fd6d:7374:10::/112", "fd00:1::1"),
		// the half that has the gateway is the last, of each family
		hop("10.1.0.128/25", "10.1.0.1"), hop("10.1.0.0/25", "10.1.0.1"),
		hop("fd00:1:0:0:8000::/65", "fd00:1::1"), hop("fd00:1::/65", "fd00:1::1"),
	}}, w.join(ep1, box))
	require.True(t, w.kernel.devices[if1].forwards)
	lines := w.lines()
	require.Subset(t, lines, []string{
		"end " + if1 + " kind 0 of net1 addresses [10.1.0.2 fd00:1::2]",
		"tables in " + box + " of [net1] dns 5353",
		"services know the endpoint " + ep1,
	})
	for _, line := range lines {
		require.NotRegexp(t, "^(programs|endpoint|interface|member|sandbox /)", line, "no program looks after it")
	}
	w.restart()
	require.Empty(t, cmp.Diff(lines, w.lines()))
	w.remove(ep1)
	w.kernel.removeNetns(box)
	require.Empty(t, cmp.Diff(networkOnly, w.lines()))
	require.NoError(t, w.DeleteNetwork(ctx, net1))
	require.Empty(t, cmp.Diff(empty, w.lines()))
}

func TestEndsOfEachMode(t *testing.T) {
	for mode, want := range map[string][]string{
		"bridge":  {"end msb1 kind 2 of net1 addresses []", "end " + if1 + " kind 1 of net1 addresses [10.1.0.2 fd00:1::2]"},
		"macvlan": {"end msh1 kind 3 of net1 addresses []"},
		"ipvlan":  {"end msh1 kind 3 of net1 addresses []"},
	} {
		w := newWorld(t)
		w.createOff(net1, 1, "mode", mode)
		w.createEndpoint(ep1, net1, 1, 2)
		w.kernel.addNetns(box)
		require.Empty(t, w.join(ep1, box).Hops, "who is on the link answers for himself")
		require.Subset(t, w.lines(), want, mode)
		for _, line := range w.lines() {
			require.NotRegexp(t, "^programs", line, mode)
		}
	}
}

func TestASandboxOnBothKindsOfNetwork(t *testing.T) {
	const third, ep3 = "net3", "e3e3e3e3e3e3e3e3"
	w := newWorld(t)
	w.createNetwork(net1, 1)
	w.createOff(net2, 2)
	w.createOff(third, 3)
	w.createEndpoint(ep1, net1, 1, 2)
	w.createEndpoint(ep2, net2, 2, 2)
	w.createEndpoint(ep3, third, 3, 2)
	w.kernel.addNetns(box)
	hook := "sandbox " + box + " sockets true tracked true dns 5353"

	w.join(ep2, box)
	require.NotContains(t, w.lines(), hook)
	w.join(ep1, box)
	both := []string{hook, "member " + box + " of net1", "member " + box + " of net2", "tables in " + box + " of [net1 net2] dns 0"}
	require.Subset(t, w.lines(), both, "the hooks lead to our resolver")
	w.restart()
	require.Subset(t, w.lines(), both)
	j := w.join(ep3, box)
	require.NotContains(t, j.Hops, Hop{netip.MustParsePrefix("10.96.0.0/24"), netip.MustParseAddr("10.3.0.1")}, "one has it already")
	require.Contains(t, w.lines(), "tables in "+box+" of [net1 net2 net3] dns 0")

	require.NoError(t, w.Leave(ctx, net1, ep1))
	require.NotContains(t, w.lines(), hook)
	require.Contains(t, w.lines(), "tables in "+box+" of [net2 net3] dns 5353")
	w.join(ep1, box)
	require.NoError(t, w.Leave(ctx, net2, ep2))
	require.NotContains(t, w.lines(), "member "+box+" of net2")
	require.NoError(t, w.Leave(ctx, third, ep3))
	for _, line := range w.lines() {
		require.NotContains(t, line, "tables in")
	}
	require.Contains(t, w.lines(), hook)
}

func TestAHostThatCannotDoWithoutEBPF(t *testing.T) {
	broken := errors.New("it cannot")
	for _, tt := range []struct {
		name  string
		make  func(*world)
		opts  map[string]string
		works bool
	}{
		{"no nftables", func(w *world) { w.tables.noKernel = broken }, off, false},
		{"no nftables, and none needed", func(w *world) { w.tables.noKernel = broken }, nil, true},
		{"a legacy firewall", func(w *world) { w.tables.firewall = broken }, off, false},
		{"a legacy firewall, past which slaves go", func(w *world) { w.tables.firewall = broken }, map[string]string{"ebpf": "off", "mode": "macvlan"}, true},
		{"no IPv6 forwarding", func(w *world) { w.kernel.forwards6 = link.ErrNoForward6 }, off, false},
		{"no IPv6 forwarding, and none needed", func(w *world) { w.kernel.forwards6 = link.ErrNoForward6 }, map[string]string{"ebpf": "off", "mode": "bridge"}, true},
	} {
		w := newWorld(t)
		before := w.lines()
		tt.make(w)
		err := w.CreateNetwork(ctx, network(net1, 1, tt.opts))
		if tt.works {
			require.NoError(t, err, tt.name)
			continue
		}
		require.Error(t, err, tt.name)
		require.Equal(t, before, w.lines(), tt.name)
	}
}

func TestSandboxesThatACommandFinds(t *testing.T) {
	w := newWorld(t)
	w.createOff(net1, 1)
	w.createNetwork(net2, 2)
	w.createEndpoint(ep1, net1, 1, 2)
	w.createEndpoint(ep2, net2, 2, 2)
	require.Empty(t, w.Sandboxes())
	cookie := w.kernel.addNetns(box).cookie
	w.kernel.addNetns("/var/run/docker/netns/other")
	w.join(ep1, box)
	w.join(ep2, "/var/run/docker/netns/other")
	w.startAgain()
	got := w.Sandboxes()
	require.Len(t, got, 1)
	require.Equal(t, cookie, got[0].Cookie)
	require.Equal(t, box, got[0].Path)
	require.Equal(t, []uint32{1}, got[0].Networks)
}

func TestHalves(t *testing.T) {
	for _, tt := range [][3]string{
		{"10.0.0.0/8", "10.0.0.0/9", "10.128.0.0/9"}, {"10.1.2.0/31", "10.1.2.0/32", "10.1.2.1/32"}, {"fd00::/64", "fd00::/65", "fd00::8000:0:0:0/65"},
	} {
		low, high, ok := halves(netip.MustParsePrefix(tt[0]))
		require.True(t, ok)
		require.Equal(t, []string{tt[1], tt[2]}, []string{low.String(), high.String()})
	}
	_, _, ok := halves(netip.MustParsePrefix("10.0.0.1/32"))
	require.False(t, ok)
}
