// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

const hand = "/run/netns/hand"

func newHand(t *testing.T, addrs ...string) *world {
	w := newWorld(t)
	w.kernel.addNetns(hand)
	w.kernel.addPair(hand, "eth0", "host0", addrs...)
	return w
}

func TestAnEndpointByHandHasHostScope(t *testing.T) {
	for _, noTCX := range []bool{false, true} {
		w := newHand(t, "192.168.10.10/24", "fd10::10/64")
		w.datapath.noTCX = noTCX
		empty := w.lines()
		e, err := w.AddByHand(ctx, "eth0", hand)
		require.NoError(t, err)
		require.Equal(t, "ep-192.168.10.10", e.ID)
		require.False(t, e.Partial)
		want := []string{
			"endpoint 192.168.10.10 at host0 network host redirect true MAC " + e.MAC,
			"endpoint fd10::10 at host0 network host redirect true MAC " + e.MAC,
			"sandbox " + hand + " sockets true tracked true dns 0",
		}
		if !noTCX {
			want = append(want, "programs of host0 on host0")
		}
		require.Subset(t, w.lines(), want)
		require.Equal(t, noTCX, w.kernel.devices["host0"].clsact)
		once := w.lines()
		_, err = w.AddByHand(ctx, "eth0", hand)
		require.NoError(t, err)
		w.restart()
		require.Empty(t, cmp.Diff(once, w.lines()))
		require.NoError(t, w.RemoveByHand(ctx, "fd10::10"))
		require.Empty(t, cmp.Diff(empty, w.lines()))
	}
}

func TestProgramsThatAnOperatorAttachedStay(t *testing.T) {
	w := newHand(t, "192.168.10.10/24")
	w.kernel.devices["host0"].tc = true
	_, err := w.AddByHand(ctx, "eth0", hand)
	require.NoError(t, err)
	require.Empty(t, w.datapath.attached)
	require.NoError(t, w.RemoveByHand(ctx, "192.168.10.10"))
	require.True(t, w.kernel.devices["host0"].tc)
}

func TestAnEndpointByHandThatChanged(t *testing.T) {
	for name, change := range map[string]func(*world){
		"another namespace at the path": func(w *world) {
			w.kernel.removeNetns(hand)
			w.kernel.addNetns(hand)
			w.kernel.addPair(hand, "eth0", "host1", "192.168.10.10/24")
		},
		"another device": func(w *world) { w.kernel.addPair(hand, "eth0", "host1", "192.168.10.10/24") },
		"another IPv6 address": func(w *world) {
			in := w.kernel.netns[hand].inside["eth0"]
			in.Addrs = in.Addrs[:1]
			w.kernel.netns[hand].inside["eth0"] = in
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newHand(t, "192.168.10.10/24", "fd10::10/64")
			_, err := w.AddByHand(ctx, "eth0", hand)
			require.NoError(t, err)
			change(w)
			_, err = w.AddByHand(ctx, "eth0", hand)
			require.NoError(t, err)
			got := w.lines()
			require.Len(t, w.datapath.endpoints, 1, "nothing of the old one is left")
			require.Len(t, w.datapath.sandboxes, 2)
			require.Len(t, w.datapath.attached, 1)
			w.restart()
			require.Empty(t, cmp.Diff(got, w.lines()))
		})
	}
}

func TestAnEndpointByHandThatIsRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		ifname, netns string
		err           string
	}{
		"no namespace":  {"eth0", "/run/netns/none", "look into the sandbox /run/netns/none: there is no such network namespace"},
		"no device":     {"eth9", hand, "look into the sandbox " + hand + ": find the device eth9: there is no such device"},
		"no address":    {"bare0", hand, "bare0 in " + hand + " has no address: give it one first"},
		"a container's": {"eth1", hand, "10.1.0.2 is the address of the endpoint " + ep1 + " already: remove that one first, or give this one another address"},
		"another's":     {"eth0", "/run/netns/twin", "192.168.10.10 is the address of the endpoint ep-192.168.10.10 already: remove that one first, or give this one another address"},
		"the host":      {"eth0", "/proc/1/ns/net", "/proc/1/ns/net is the host's own network namespace, which needs no endpoint: name a sandbox's"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newHand(t, "192.168.10.10/24")
			w.createNetwork(net1, 1)
			w.createEndpoint(ep1, net1, 1, 2)
			w.kernel.addNetns(box)
			w.join(ep1, box)
			w.kernel.addPair(hand, "bare0", "host1")
			w.kernel.addPair(hand, "eth1", "host2", "10.1.0.2/24")
			w.kernel.addNetns("/run/netns/twin")
			w.kernel.addPair("/run/netns/twin", "eth0", "host3", "192.168.10.10/24")
			w.kernel.addNetns("/proc/1/ns/net").cookie = hostCookie
			w.kernel.addPair("/proc/1/ns/net", "eth0", "host4", "192.168.1.1/24")
			_, err := w.AddByHand(ctx, "eth0", hand)
			require.NoError(t, err)
			before := w.lines()
			_, err = w.AddByHand(ctx, tt.ifname, tt.netns)
			require.EqualError(t, err, tt.err)
			require.Empty(t, cmp.Diff(before, w.lines()))
		})
	}
}

func TestRemovalByHandThatIsRefused(t *testing.T) {
	w := newHand(t)
	w.createNetwork(net1, 1)
	w.createEndpoint(ep1, net1, 1, 2)
	require.EqualError(t, w.RemoveByHand(ctx, "eth0"), "remove the endpoint \"eth0\": give its address, as `mustang ep ls` shows it")
	require.EqualError(t, w.RemoveByHand(ctx, "10.9.9.9"), "endpoint 10.9.9.9: not found: `mustang ep ls` lists them")
	require.EqualError(t, w.RemoveByHand(ctx, "10.1.0.2"), "the endpoint 10.1.0.2 belongs to a container: remove that")
}
