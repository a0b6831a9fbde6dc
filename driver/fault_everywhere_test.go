// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

// step is one call of an engine or an operator.
type step struct {
	name string
	do   func(*world) error
	kind string // creates, changes or removes
}

const (
	creates = "creates"
	changes = "changes"
	removes = "removes"
)

// life is a network and an endpoint from beginning to end, and one made by hand.
var life = []step{
	{name: "create the network", kind: creates, do: func(w *world) error { return w.CreateNetwork(ctx, network(net1, 1, w.setting.options)) }},
	{name: "create the endpoint", kind: creates, do: func(w *world) error {
		_, err := w.CreateEndpoint(ctx, endpoint(ep1, net1, 1, 2))
		return err
	}},
	{name: "join", kind: changes, do: func(w *world) error {
		_, err := w.Join(ctx, net1, ep1, box)
		return err
	}},
	{name: "publish", kind: changes, do: func(w *world) error { return w.Publish(ctx, net1, ep1, twoPorts) }},
	{name: "add by hand", kind: creates, do: func(w *world) error {
		_, err := w.AddByHand(ctx, "eth0", "/run/netns/hand")
		return err
	}},
	{name: "remove by hand", kind: removes, do: func(w *world) error { return w.removeHand() }},
	{name: "unpublish", kind: changes, do: func(w *world) error { return w.Unpublish(ctx, net1, ep1) }},
	{name: "leave", kind: changes, do: func(w *world) error { return w.Leave(ctx, net1, ep1) }},
	{name: "delete the endpoint", kind: removes, do: func(w *world) error { return w.DeleteEndpoint(ctx, net1, ep1) }},
	{name: "delete the network", kind: removes, do: func(w *world) error { return w.DeleteNetwork(ctx, net1) }},
}

// setting is a kind of host and network.
type setting struct {
	name    string
	noTCX   bool
	options map[string]string
}

var settings = []setting{
	{name: "veth"},
	{name: "veth without TCX", noTCX: true},
	{name: "bridge", options: map[string]string{"mode": "bridge"}},
	{name: "macvlan", options: map[string]string{"mode": "macvlan"}},
	{name: "macvlan without TCX", noTCX: true, options: map[string]string{"mode": "macvlan"}},
	{name: "ipvlan", options: map[string]string{"mode": "ipvlan"}},
	{name: "ipvlan on a LAN", options: map[string]string{"mode": "ipvlan", "parent": "lan0"}},
	{name: "macvlan on the uplink", options: map[string]string{"mode": "macvlan", "parent": "eth0"}},
	{name: "netkit", options: map[string]string{"mode": "netkit"}},
	{name: "veth without eBPF", options: map[string]string{"ebpf": "off"}},
	{name: "bridge without eBPF", options: map[string]string{"ebpf": "off", "mode": "bridge"}},
	{name: "macvlan without eBPF", options: map[string]string{"ebpf": "off", "mode": "macvlan"}},
	{name: "netkit without eBPF", options: map[string]string{"ebpf": "off", "mode": "netkit"}},
}

// removeHand is RemoveByHand, done when there is nothing to remove.
func (w *world) removeHand() error {
	for _, e := range w.Endpoints() {
		if e.Source == SourceHand {
			return w.RemoveByHand(ctx, e.IPv4.Addr().String())
		}
	}
	return nil
}

// newLife is a world in which the first n steps of life have been done.
func newLife(t *testing.T, n int, on setting) *world {
	w := newWorld(t)
	w.datapath.noTCX, w.setting = on.noTCX, on
	w.kernel.addNetns(box)
	w.kernel.addForeign("lan0")
	w.kernel.addUplink("eth0", "192.0.2.2")
	require.NoError(t, w.SyncUplinks())
	w.kernel.addNetns("/run/netns/hand")
	w.kernel.addPair("/run/netns/hand", "eth0", "host0", "192.168.10.10/24", "fd10::10/64")
	for _, s := range life[:n] {
		require.NoError(t, s.do(w), s.name)
	}
	return w
}

// end removes everything as an engine and an operator would.
func (w *world) end() {
	w.t.Helper()
	require.NoError(w.t, w.removeHand())
	w.remove(ep1)
	require.NoError(w.t, w.DeleteNetwork(ctx, net1))
}

// linesAfterRestart are those of the undisturbed world.
func linesAfterRestart(t *testing.T, n int, on setting) []string {
	w := newLife(t, n, on)
	w.restart()
	return w.lines()
}

func TestAFailureOfAnyCallLeavesNothing(t *testing.T) {
	for _, on := range settings {
		empty := linesAfterRestart(t, 0, on)
		for i, s := range life {
			if on.options["ebpf"] == "off" && strings.HasSuffix(s.name, "publish") {
				continue // the engine does that
			}
			before, after := linesAfterRestart(t, i, on), linesAfterRestart(t, i+1, on)
			for _, mode := range []faultMode{failsOnce, failsOnward, crashes} {
				t.Run(fmt.Sprintf("%s/%s/%s", on.name, s.name, mode), func(t *testing.T) {
					for n := 1; ; n++ {
						require.Less(t, n, 100, "the step never ends")
						if !breakAt(t, i, n, mode, on, before, after, empty) {
							require.Greater(t, n, 1, "the step calls nothing")
							return
						}
					}
				})
			}
		}
	}
}

// breakAt breaks the n'th call of a step, and reports false if the step has fewer calls.
func breakAt(t *testing.T, i, n int, mode faultMode, on setting, before, after, empty []string) bool {
	s, w := life[i], newLife(t, i, on)
	alive := w.lines()
	w.fault.arm(mode, n)
	died, err := survive(func() error { return s.do(w) })
	if !w.fault.disarm() {
		require.NoError(t, err)
		return false
	}
	at := fmt.Sprintf("call %d of %s", n, s.name)
	// what can do without (names of the engine's) may succeed although a call failed
	if !died && err != nil {
		require.ErrorIs(t, err, errInjected, at)
		if mode == failsOnce && s.kind == creates {
			require.Empty(t, cmp.Diff(alive, w.lines()), "undone at once: %s", at)
		}
		again := s.do(w) // an operator tries again, and some engines do
		require.NoError(t, again, at)
		w.end()
		require.Empty(t, cmp.Diff(empty, w.lines()), "deleted after a repeat: %s", at)
		w = newLife(t, i, on)
		w.fault.arm(mode, n)
		_, _ = survive(func() error { return s.do(w) })
		w.fault.disarm()
	}
	w.restart()
	got := w.lines()
	switch {
	case !died && err == nil:
		require.Empty(t, cmp.Diff(after, got), at)
	case s.kind == creates:
		require.Empty(t, cmp.Diff(before, got), "the engine was told of a failure: %s", at)
	default:
		if !slices.Equal(before, got) {
			require.Empty(t, cmp.Diff(after, got), "neither as before nor as after: %s", at)
		}
	}
	w.end()
	require.Empty(t, cmp.Diff(empty, w.lines()), "deleted after a restart: %s", at)
	return true
}

// TestACommandRemovesWhatAKilledOneHasMade has no start in between, as where no daemon runs.
func TestACommandRemovesWhatAKilledOneHasMade(t *testing.T) {
	for _, on := range settings {
		empty := linesAfterRestart(t, 0, on)
		for i, s := range life {
			if s.kind != creates || i == 0 {
				continue
			}
			t.Run(on.name+"/"+s.name, func(t *testing.T) {
				for n := 1; ; n++ {
					w := newLife(t, i, on)
					w.fault.arm(crashes, n)
					_, _ = survive(func() error { return s.do(w) })
					if !w.fault.disarm() {
						require.Greater(t, n, 1)
						return
					}
					w.startAgain()
					require.NoError(t, w.Recall())
					w.end()
					require.Empty(t, cmp.Diff(empty, w.lines()), "call %d", n)
				}
			})
		}
	}
}

func TestWhatTheKernelDidNotLetUsRemoveIsRemovedAtTheNextStart(t *testing.T) {
	for i, s := range life {
		if s.kind != removes {
			continue
		}
		on := setting{}
		after := linesAfterRestart(t, i+1, on)
		w := newLife(t, i, on)
		w.fault.spare = func(call string) bool { return call == "store" }
		w.fault.arm(failsOnward, 1)
		require.Error(t, s.do(w), s.name)
		w.fault.disarm()
		w.restart() // the engine forgot it when the call failed, and asks no more
		require.Empty(t, cmp.Diff(after, w.lines()), s.name)
	}
}

func TestAStartCanBreakAnywhereAndTheNextMakesItGood(t *testing.T) {
	for _, on := range settings {
		for _, mode := range []faultMode{failsOnce, failsOnward, crashes} {
			t.Run(fmt.Sprintf("%s/%s", on.name, mode), func(t *testing.T) { breakStarts(t, mode, on) })
		}
	}
}

func breakStarts(t *testing.T, mode faultMode, on setting) {
	for n := 1; ; n++ {
		require.Less(t, n, 200)
		w := newLife(t, 5, on)
		want := linesAfterRestart(t, 5, on)
		w.Close()
		w.datapath.wipe()
		w.startAgain()
		w.fault.arm(mode, n)
		_, _ = survive(w.Restore)
		if !w.fault.disarm() {
			break
		}
		w.restart()
		require.Empty(t, cmp.Diff(want, w.lines()), "%s: call %d of Restore", mode, n)
		w.end()
		require.Empty(t, cmp.Diff(linesAfterRestart(t, 0, on), w.lines()))
	}
}
