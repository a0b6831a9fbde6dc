// SPDX-License-Identifier: Apache-2.0

package state

// DecodeRecord is for the tests.
var DecodeRecord = decodeRecord
