// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"github.com/mustang-net/mustang/service"
	"github.com/mustang-net/mustang/state"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver/link"
)

// running is a world with a container on two networks, one more that waits to join, and one by hand.
func running(t *testing.T) *world {
	w := newLife(t, 5, setting{})
	w.createNetwork(net2, 2)
	w.createEndpoint(ep2, net2, 2, 2)
	w.join(ep2, box)
	w.createEndpoint("e3e3e3e3e3e3e3e3", net2, 2, 3)
	w.kernel.moveInto(if1, box)
	return w
}

func TestTheNextDaemonFindsWhatTheLastLeft(t *testing.T) {
	t.Run("after a clean stop", func(t *testing.T) {
		w := running(t)
		want := w.lines()
		w.restart()
		require.Empty(t, cmp.Diff(want, w.lines()))
	})
	t.Run("with other maps, as after an unmount of bpffs", func(t *testing.T) {
		w := running(t)
		want := w.lines()
		w.datapath.wipe()
		w.restart()
		require.Empty(t, cmp.Diff(want, w.lines()))
	})
	t.Run("after the container ended meanwhile", func(t *testing.T) {
		w := running(t)
		w.kernel.removeNetns(box)
		w.restart()
		require.True(t, w.services.gone[ep1])
		require.NotContains(t, w.lines(), sandboxLine)
		e, err := w.Endpoint(ctx, net1, ep1)
		require.NoError(t, err, "the engine will ask for its removal")
		require.Empty(t, e.Sandbox)
		w.remove(ep1)
	})
	t.Run("after the sandbox could not be looked at", func(t *testing.T) {
		w := running(t)
		want := w.lines()
		w.startAgain()
		w.fault.spare = func(call string) bool { return call != "cookie" }
		w.fault.arm(failsOnward, 1)
		require.ErrorIs(t, w.Restore(), errInjected)
		w.fault.disarm()
		require.Contains(t, w.lines(), sandboxLine[:len(sandboxLine)-len(" dns 5353")]+" dns 5353", "it may well be alive")
		w.restart()
		require.Empty(t, cmp.Diff(want, w.lines()))
	})
}

func TestAfterAReboot(t *testing.T) {
	w := newWorld(t)
	empty := w.lines()
	w.kernel.addForeign("eth0")
	w.kernel.addNetns(box)
	w.createNetwork(net1, 1)
	w.createEndpoint(ep1, net1, 1, 2)
	w.createEndpoint(ep2, net1, 1, 3)
	w.join(ep1, box)
	old, err := w.Endpoint(ctx, net1, ep2)
	require.NoError(t, err)
	w.kernel.addNetns("/run/netns/hand")
	w.kernel.addPair("/run/netns/hand", "eth0", "host0", "192.168.10.10/24")
	_, err = w.AddByHand(ctx, "eth0", "/run/netns/hand")
	require.NoError(t, err)

	w.reboot()
	require.Subset(t, w.lines(), []string{
		"refused 10.1.0.0/24", "interface " + if1 + " network net1 gateways 10.1.0.1 fd00:1::1", "programs of " + if1 + " on " + if1,
	}, "networks and endpoints are made again")
	require.Len(t, w.Endpoints(), 2, "the one by hand is gone with its sandbox")
	got, err := w.Endpoint(ctx, net1, ep2)
	require.NoError(t, err)
	require.NotEqual(t, old.Index, got.Index)
	w.restart()
	again, err := w.Endpoint(ctx, net1, ep2)
	require.NoError(t, err)
	require.Equal(t, got, again, "new ifindexes are on record")

	w.remove(ep1) // an ifindex that was the one's may be the other's now
	require.Contains(t, w.lines(), "interface mste2e2e2e2e2e network net1 gateways 10.1.0.1 fd00:1::1")
	w.remove(ep2)
	require.NoError(t, w.DeleteNetwork(ctx, net1))
	require.Empty(t, cmp.Diff(empty, w.lines()))
}

func TestAPathThatBelongsToAnotherSandboxAfterAReboot(t *testing.T) {
	w := newWorld(t)
	w.kernel.addNetns("/run/netns/first")
	w.kernel.addNetns("/run/netns/hand")
	w.kernel.addPair("/run/netns/hand", "eth0", "host0", "192.168.10.10/24")
	w.kernel.addNetns(box)
	w.createNetwork(net1, 1)
	w.createEndpoint(ep1, net1, 1, 2)
	w.join(ep1, box)
	_, err := w.AddByHand(ctx, "eth0", "/run/netns/hand")
	require.NoError(t, err)
	w.Close()
	w.kernel.boot()
	w.datapath.wipe()
	w.kernel.addNetns("/run/netns/other") // has the cookie that hand had
	w.kernel.addNetns(box)                // and box has hand's
	w.kernel.addNetns("/run/netns/hand")
	w.restart()
	require.NotContains(t, w.lines(), sandboxLine)
	require.Len(t, w.Endpoints(), 1)
}

func TestLeftoversAreRemovedAndTheOthersDevicesStay(t *testing.T) {
	w := running(t)
	want := w.lines()
	w.kernel.mu.Lock()
	w.kernel.add("mstleftover", "an endpoint of another life")
	w.kernel.mu.Unlock()
	require.NoError(t, w.datapath.AttachLXC("mstleftover", w.kernel.devices["mstleftover"].index, bpf.HostEnd))
	require.NoError(t, w.kernel.Refuse(netip.MustParsePrefix("10.77.0.0/16")))
	require.NoError(t, w.datapath.PutEndpoint(bpf.Endpoint{Addr: netip.MustParseAddr("10.77.0.2"), IfIndex: 77}))
	require.NoError(t, w.datapath.PutInterface(bpf.Interface{IfIndex: 77}))
	require.NoError(t, w.datapath.PutSandbox(bpf.Sandbox{Cookie: 7777}))
	require.NoError(t, w.datapath.PutMember(7777, 3))
	require.NoError(t, w.datapath.PutMember(w.kernel.netns[box].cookie, 77))
	w.restart()
	require.Empty(t, cmp.Diff(want, w.lines()))
	require.True(t, w.kernel.has("host0"))
}

func TestThePoolsOfAnotherConfiguration(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, w.kernel.Refuse(netip.MustParsePrefix("10.200.0.0/16")))
	w.startAgain()
	w.pools = []netip.Prefix{netip.MustParsePrefix("10.96.3.4/16")} // as somebody may write it
	require.NoError(t, w.Restore())
	require.Contains(t, w.lines(), "refused 10.96.0.0/16")
	require.NotContains(t, w.lines(), "refused 10.200.0.0/16")
	require.NotContains(t, w.lines(), "refused fd6d:7374:10::/96")
}

func TestWhatALostStateKnewGoesOnUntilTheEngineHasForgottenIt(t *testing.T) {
	w := newLife(t, 3, setting{}) // a network with an endpoint in a sandbox
	before := w.lines()
	w.Close()
	w.store = state.Memory()
	w.services.networks = map[string]service.Network{}
	w.startAgain()
	for range 2 { // before a daemon has seen it, and after
		used, err := w.InUse()
		require.NoError(t, err)
		require.NotZero(t, used)
		require.NoError(t, w.Restore())
	}
	require.True(t, w.Orphaned())
	for _, line := range before {
		line = strings.ReplaceAll(line, "network net1", "network ") // whose name is lost
		if strings.HasPrefix(line, "device ") || strings.HasPrefix(line, "endpoint ") || strings.HasPrefix(line, "interface ") {
			require.Contains(t, w.lines(), line)
		}
	}
	w.createNetwork(net2, 2)
	require.Equal(t, uint32(2), w.Networks()[0].Number, "no number of a network that is still in the maps")

	w.restart() // the state is not new any more
	require.True(t, w.Orphaned())
	known := map[string]map[string]bool{net1: {ep1: true}, net2: {}}
	for range 3 {
		require.NoError(t, w.Collect(known))
	}
	require.True(t, w.Orphaned(), "the engine still has it")
	delete(known, net1)
	require.NoError(t, w.Collect(known))
	require.True(t, w.Orphaned(), "missing once")
	require.NoError(t, w.Collect(known))
	require.False(t, w.Orphaned())
	for _, line := range w.lines() {
		require.NotContains(t, line, if1)
		require.False(t, strings.HasPrefix(line, "interface "), line)
	}
}

// Of runtimes of CNI nobody lists what there is: the sandboxes tell.
func TestWhatALostStateKnewGoesOnWhileItsSandboxRuns(t *testing.T) {
	w := newLife(t, 3, setting{})
	w.createNetwork(net2, 2)
	w.createEndpoint(ep2, net2, 2, 2)
	w.join(ep2, box)
	w.kernel.moveInto(if1, box)
	if2 := hostName(ep2)
	w.kernel.moveInto(if2, box)
	w.Close()
	w.store = state.Memory()
	w.services.networks = map[string]service.Network{}
	w.startAgain()
	require.NoError(t, w.Recall()) // a call without a daemon
	require.True(t, w.Orphaned())
	w.restart()
	for range 3 {
		require.NoError(t, w.Collect(map[string]map[string]bool{}), "the engine knows neither")
		require.NoError(t, w.SweepOrphans())
	}
	require.True(t, w.Orphaned())
	require.True(t, w.kernel.has(if1))
	require.NoError(t, w.DeleteEndpoint(ctx, net2, ep2))
	require.False(t, w.kernel.has(if2), "what somebody ends goes at once")
	for _, line := range w.lines() {
		require.NotContains(t, line, "10.2.0.2")
		require.NotContains(t, line, if2)
	}
	require.True(t, w.kernel.has(if1))

	w.kernel.slaves = map[string]link.InSandbox{ep2: {Path: "/proc/7/ns/net", Addrs: []netip.Prefix{netip.MustParsePrefix("10.3.0.2/24")}}}
	require.ErrorContains(t, w.CreateNetwork(ctx, network("net3", 3, nil)),
		"the container in the network namespace /proc/7/ns/net has the address 10.3.0.2 of it, and its state was lost: end that one first")
	w.kernel.slaves = nil
	w.kernel.removeNetns(box)
	require.NoError(t, w.SweepOrphans())
	require.False(t, w.Orphaned())
	for _, line := range w.lines() {
		require.NotContains(t, line, "10.1.0.2")
		require.False(t, strings.HasPrefix(line, "interface "), line)
	}
}

// loseState begins again with an empty state beside a network with an endpoint in a sandbox.
func loseState(t *testing.T) *world {
	w := newLife(t, 3, setting{})
	w.kernel.moveInto(if1, box)
	w.Close()
	w.store = state.Memory()
	w.services.networks = map[string]service.Network{}
	w.startAgain()
	return w
}

func TestNothingIsRemovedUntilSandboxesCouldBeLookedAt(t *testing.T) {
	for _, call := range []string{"in sandboxes", "store", "owned"} {
		t.Run(call, func(t *testing.T) {
			w := loseState(t)
			w.fault.spare = func(c string) bool { return c != call }
			w.fault.arm(failsOnward, 1)
			require.ErrorIs(t, w.Restore(), errInjected)
			require.True(t, w.Orphaned(), "for all that is known")
			require.ErrorIs(t, w.SweepOrphans(), errInjected)
			require.ErrorIs(t, w.CreateNetwork(ctx, network(net2, 2, nil)), errInjected, "it could get a number that is in use")
			require.True(t, w.fault.disarm())
			require.True(t, w.kernel.has(if1))
			require.NoError(t, w.SweepOrphans())
			require.True(t, w.Orphaned())
			w.createNetwork(net2, 2)
			require.Equal(t, uint32(2), w.Networks()[0].Number, "no number of a network that is still in the maps")
			w.restart()
			require.True(t, w.Orphaned())
			require.True(t, w.kernel.has(if1))
			w.kernel.removeNetns(box)
			require.NoError(t, w.SweepOrphans())
			require.False(t, w.Orphaned())
		})
	}
}

func TestANewStateThatCouldNotLookAtFirst(t *testing.T) {
	w := newWorld(t)
	w.startAgain()
	w.fault.spare = func(c string) bool { return c != "in sandboxes" }
	w.fault.arm(failsOnce, 1)
	require.ErrorContains(t, w.Restore(), "look for endpoints of a lost state, which is tried again")
	require.True(t, w.fault.disarm())
	require.NoError(t, w.SweepOrphans())
	require.False(t, w.Orphaned(), "there were none")
}

func TestTheEndOfALostStateIsRepeatedUntilAllOfItIsGone(t *testing.T) {
	for _, call := range []string{"delete interface", "store"} {
		t.Run(call, func(t *testing.T) {
			w := loseState(t)
			require.NoError(t, w.Restore())
			w.kernel.removeNetns(box)
			w.fault.spare = func(c string) bool { return c != call }
			w.fault.arm(failsOnward, 1)
			require.ErrorIs(t, w.SweepOrphans(), errInjected)
			require.True(t, w.fault.disarm())
			require.True(t, w.Orphaned())
			w.restart()
			require.True(t, w.Orphaned(), "and a daemon that starts then goes on with it")
			require.NoError(t, w.SweepOrphans())
			require.False(t, w.Orphaned())
			for _, line := range w.lines() {
				require.False(t, strings.HasPrefix(line, "interface "), line)
			}
		})
	}
}

func TestNobodyWaitsWhileSandboxesAreLookedAt(t *testing.T) {
	w := loseState(t)
	require.NoError(t, w.Restore())
	w.kernel.whileListing = func() {
		require.True(t, w.mu.TryLock())
		w.mu.Unlock()
	}
	require.NoError(t, w.SweepOrphans())
	require.Nil(t, w.kernel.whileListing, "it was called")
}

func TestASandboxWithoutEBPFThatEndedLetsItsEndpointsGo(t *testing.T) {
	w := newWorld(t)
	off := map[string]string{"ebpf": "off"}
	require.NoError(t, w.CreateNetwork(ctx, network(net1, 1, off)))
	require.NoError(t, w.CreateNetwork(ctx, network(net2, 2, off)))
	empty := w.lines()
	w.kernel.addNetns(box)
	w.createEndpoint(ep1, net1, 1, 2)
	w.createEndpoint(ep2, net2, 2, 2)
	w.join(ep1, box)
	w.join(ep2, box)
	w.kernel.removeNetns(box) // the engine was killed: no Leave came
	require.NoError(t, w.DeleteEndpoint(ctx, net1, ep1))
	require.NoError(t, w.DeleteEndpoint(ctx, net2, ep2))
	require.Equal(t, empty, w.lines())
}
