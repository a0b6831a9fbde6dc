// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLookLoadsNoPrograms(t *testing.T) {
	d := &Datapath{dir: testDP.dir}
	require.NoError(t, d.Look(nil).Load())
	require.Nil(t, d.lxc, "its programs would be in no link, and each link's would seem to be of another build")
}
