// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/mustang-net/mustang/bpf"
	"github.com/mustang-net/mustang/driver/link"
)

const bpffs = "/sys/fs/bpf"

// loaded are our programs, in maps of this test's own.
func loaded(t *testing.T) *bpf.Datapath {
	t.Helper()
	d, err := bpf.Open(bpffs)
	require.NoError(t, err)
	t.Cleanup(func() {
		d.Close()
		require.NoError(t, bpf.RemoveAll(bpffs))
		pins, err := os.ReadDir(bpffs + "/tc/globals")
		require.NoError(t, err)
		require.Empty(t, pins)
	})
	require.NoError(t, d.Load())
	return d
}

func filters(t *testing.T, where string) string {
	t.Helper()
	return run(t, "tc filter show dev "+pair().Host+" "+where)
}

func filter(d *bpf.Datapath, program string) link.Filter {
	return link.Filter{Name: program, FD: d.ProgramFD(program)}
}

func TestOurFilters(t *testing.T) {
	begin(t)
	d := loaded(t)
	newPair(t)
	require.NoError(t, host.DetachClsact(pair().Host), "nothing to undo")
	for range 2 { // the second time as the next build does
		require.NoError(t, host.AttachClsact(pair().Host, filter(d, "lxc_ingress"), filter(d, "lxc_egress")))
		require.Equal(t, 1, strings.Count(filters(t, "ingress"), "direct-action"))
		require.Contains(t, filters(t, "ingress"), "lxc_ingress")
		require.Equal(t, 1, strings.Count(filters(t, "egress"), "direct-action"))
		require.Contains(t, filters(t, "egress"), "lxc_egress")
	}
	require.False(t, host.HasClsact(pair().Host), "they are no operator's")
	require.NoError(t, host.DetachClsact(pair().Host))
	require.NotContains(t, run(t, "tc qdisc show dev "+pair().Host), "clsact")
	require.NoError(t, host.DetachClsact("none0"))
	require.ErrorContains(t, host.AttachClsact("none0", link.Filter{}, link.Filter{}), "find the device none0")
}

func TestAnOperatorsFilters(t *testing.T) {
	begin(t)
	d := loaded(t)
	newPair(t)
	require.False(t, host.HasClsact(pair().Host))
	require.False(t, host.HasClsact("none0"))
	run(t, "tc qdisc add dev "+pair().Host+" clsact")
	require.False(t, host.HasClsact(pair().Host))
	run(t, "tc filter add dev "+pair().Host+" ingress bpf da obj ../../bpf/mst_lxc.o sec lxc-ingress")
	run(t, "tc filter add dev "+pair().Host+" egress bpf da obj ../../bpf/mst_lxc.o sec lxc-egress")
	require.True(t, host.HasClsact(pair().Host))
	require.Contains(t, filters(t, "ingress"), "mst_lxc.o:[lxc-ingress]")

	require.NoError(t, host.AttachClsact(pair().Host, filter(d, "lxc_ingress"), filter(d, "lxc_egress")))
	require.NoError(t, host.DetachClsact(pair().Host))
	require.True(t, host.HasClsact(pair().Host), "what is not ours stays")
	require.Contains(t, filters(t, "egress"), "mst_lxc.o:[lxc-egress]")
}

func TestTCSharesThePinnedMaps(t *testing.T) {
	begin(t)
	loaded(t)
	newPair(t)
	pins, err := os.ReadDir(bpffs + "/tc/globals")
	require.NoError(t, err)
	run(t, "tc qdisc add dev "+pair().Host+" clsact")
	run(t, "tc filter add dev "+pair().Host+" ingress bpf da obj ../../bpf/mst_lxc.o sec lxc-ingress")
	after, err := os.ReadDir(bpffs + "/tc/globals")
	require.NoError(t, err)
	require.Equal(t, len(pins), len(after), "tc has made no map of its own")
}

func TestProgramsStayThroughTheMoveIntoASandboxAndBack(t *testing.T) {
	begin(t)
	d := loaded(t)
	dev := newPair(t)
	netns(t, "one")
	if err := d.AttachLXC(pair().Host, dev.Index, bpf.HostEnd); err != nil {
		require.ErrorIs(t, err, bpf.ErrNoTCX)
		t.Skip("this kernel has no TCX; TestOurFilters shows the way for it")
	}
	run(t, "ip link set "+pair().Peer+" netns one")
	attached, err := d.AttachedLXC()
	require.NoError(t, err)
	require.Equal(t, []string{pair().Host}, attached)
	require.NoError(t, d.AttachLXC(pair().Host, dev.Index, bpf.HostEnd), "as a restart does")
	run(t, "ip -n one link set "+pair().Peer+" netns "+strconv.Itoa(os.Getpid()))

	// another device of the same name: the dead links are replaced
	require.NoError(t, host.Delete(pair().Host, owner))
	again, err := host.CreatePair(pair())
	require.NoError(t, err)
	require.NotEqual(t, dev.Index, again.Index)
	require.NoError(t, d.AttachLXC(pair().Host, again.Index, bpf.HostEnd))
	require.NoError(t, d.DetachLXC(pair().Host))
	require.NoError(t, d.DetachLXC(pair().Host))
	attached, err = d.AttachedLXC()
	require.NoError(t, err)
	require.Empty(t, attached)
}
