// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/stretchr/testify/require"
)

// verifierBudget is how many instructions the verifier may walk through for one program. Kernels give up at
// a million; what is near that on one may be beyond it on the next.
const verifierBudget = 200_000

func TestVerifierStaysWithinItsBudget(t *testing.T) {
	for _, c := range []*ebpf.Collection{testDP.lxc, testDP.host, testDP.sock} {
		for name, p := range c.Programs {
			info, err := p.Info()
			require.NoError(t, err)
			n, ok := info.VerifiedInstructions()
			require.True(t, ok, "the kernel does not tell")
			t.Logf("%-18s %6d instructions verified", name, n)
			require.Less(t, n, uint32(verifierBudget), name)
		}
	}
}

func TestEveryReasonHasANameAndAMeaning(t *testing.T) {
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(lxcObject))
	require.NoError(t, err)
	var enum *btf.Enum
	require.NoError(t, spec.TypeByName("mst_reason", &enum))
	inObject := map[string]uint32{}
	names := map[string]bool{}
	for _, v := range enum.Values {
		inObject[v.Name] = uint32(v.Value)
		if v.Value == 0 {
			continue
		}
		r, ok := reasons[uint32(v.Value)]
		require.True(t, ok, "%s has no entry in metrics.go", v.Name)
		require.NotEmpty(t, r[0])
		require.NotEmpty(t, r[1], "%s has no meaning", v.Name)
		require.False(t, names[r[0]], "the name %s is taken twice", r[0])
		names[r[0]] = true
	}
	require.Len(t, reasons, len(enum.Values)-1, "metrics.go names what the datapath does not have")

	header, err := os.ReadFile("src/mst.h")
	require.NoError(t, err)
	inHeader := map[string]uint32{}
	for _, m := range regexp.MustCompile(`(MST_REASON_\w+)\s*=\s*(\d+)\s*,`).FindAllSubmatch(header, -1) {
		n, err := strconv.Atoi(string(m[2]))
		require.NoError(t, err)
		inHeader[string(m[1])] = uint32(n)
	}
	require.Equal(t, inHeader, inObject, "the object is older than mst.h: run `make -C bpf -B`")
}

func TestEveryDirectionHasAName(t *testing.T) {
	spec, err := btf.LoadSpecFromReader(bytes.NewReader(lxcObject))
	require.NoError(t, err)
	var enum *btf.Enum
	require.NoError(t, spec.TypeByName("mst_metric_dir", &enum))
	require.Len(t, directions, len(enum.Values))
	for _, v := range enum.Values {
		require.NotEmpty(t, directions[uint32(v.Value)], v.Name)
	}
}

func TestCountersSayWhereAndHowMuch(t *testing.T) {
	w := newWorld(t, false)
	in := tcp(w.foreign, 5000, w.client, 80, syn)
	for range 3 {
		w.send(fromClient(), in)
	}
	w.send(toClient(99), in)
	drops, err := testDP.Drops()
	require.NoError(t, err)
	require.Equal(t, []Drop{
		{Reason: "spoofed", Meaning: reasons[reasonSpoofed][1], Direction: "from-container", IfIndex: clientIf, Packets: 3, Bytes: 3 * 54},
		{Reason: "isolated", Meaning: reasons[reasonIsolated][1], Direction: "to-container", IfIndex: clientIf, Packets: 1, Bytes: 54},
	}, drops)
}
