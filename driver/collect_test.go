// SPDX-License-Identifier: Apache-2.0

package driver

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
)

func TestWhatTheEngineForgotIsCollected(t *testing.T) {
	known := func(endpoints ...string) map[string]map[string]bool {
		out := map[string]map[string]bool{net1: {}}
		for _, id := range endpoints {
			out[net1][id] = true
		}
		return out
	}
	t.Run("an endpoint that is missing twice", func(t *testing.T) {
		w := newWorld(t)
		w.createNetwork(net1, 1)
		w.createEndpoint(ep1, net1, 1, 2)
		want := w.lines()
		w.createEndpoint(ep2, net1, 1, 3)
		require.NoError(t, w.Collect(known(ep1)))
		require.Len(t, w.Endpoints(), 2, "it may be just being made")
		require.NoError(t, w.Collect(known(ep1)))
		require.Empty(t, cmp.Diff(want, w.lines()))
	})
	t.Run("none that was missing once, now and then", func(t *testing.T) {
		w := newWorld(t)
		w.createNetwork(net1, 1)
		w.createEndpoint(ep1, net1, 1, 2)
		for range 3 {
			require.NoError(t, w.Collect(known()))
			require.NoError(t, w.Collect(known(ep1)))
		}
		require.Len(t, w.Endpoints(), 1)
	})
	t.Run("none in a sandbox that exists, or cannot be looked at", func(t *testing.T) {
		w := newWorld(t)
		w.kernel.addNetns(box)
		w.createNetwork(net1, 1)
		w.createEndpoint(ep1, net1, 1, 2)
		w.join(ep1, box)
		for range 3 {
			require.NoError(t, w.Collect(nil))
		}
		w.kernel.removeNetns(box)
		w.fault.spare = func(call string) bool { return call != "cookie" }
		w.fault.arm(failsOnward, 1)
		require.NoError(t, w.Collect(nil))
		require.True(t, w.fault.disarm())
		require.Len(t, w.Endpoints(), 1)
		require.NoError(t, w.Collect(nil))
		require.Empty(t, w.Endpoints())
	})
	t.Run("a network, and nothing made by hand", func(t *testing.T) {
		w := newHand(t, "192.168.10.10/24")
		_, err := w.AddByHand(ctx, "eth0", hand)
		require.NoError(t, err)
		want := w.lines()
		w.createNetwork(net1, 1)
		w.createEndpoint(ep1, net1, 1, 2)
		for range 3 {
			require.NoError(t, w.Collect(nil))
		}
		require.Empty(t, cmp.Diff(want, w.lines()))
	})
}
