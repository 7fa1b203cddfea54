{{- define "enginehouse.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* The name of everything that belongs to the operator of this release. */}}
{{- define "enginehouse.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 53 | trimSuffix "-" }}
{{- else if contains (include "enginehouse.name" .) .Release.Name }}
{{- printf "%s-operator" .Release.Name | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s-operator" .Release.Name (include "enginehouse.name" .) | trunc 53 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Cluster-wide names also say the namespace: two releases of one name may live in two namespaces. */}}
{{- define "enginehouse.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "enginehouse.fullname" .) }}
{{- end }}

{{- define "enginehouse.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "enginehouse.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* A small, stable subset: a deployment's selector never changes. */}}
{{- define "enginehouse.selectorLabels" -}}
app.kubernetes.io/name: {{ include "enginehouse.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end }}

{{/* Of everything that the chart makes. */}}
{{- define "enginehouse.chartLabels" -}}
app.kubernetes.io/name: {{ include "enginehouse.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: enginehouse
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "enginehouse.labels" -}}
{{ include "enginehouse.chartLabels" . }}
app.kubernetes.io/component: operator
{{- end }}

{{/* podLabels win over commonLabels. */}}
{{- define "enginehouse.podLabels" -}}
{{- toYaml (mergeOverwrite (include "enginehouse.labels" . | fromYaml) (default dict .Values.podLabels)) }}
{{- end }}

{{/* monitoring.labels win over commonLabels: a key that stands twice is no valid YAML. */}}
{{- define "enginehouse.monitoringLabels" -}}
{{- toYaml (mergeOverwrite (include "enginehouse.labels" . | fromYaml) (default dict .Values.monitoring.labels)) }}
{{- end }}

{{- define "enginehouse.operatorImage" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "enginehouse.engineImage" -}}
{{- default (printf "enginehouse-engine:%s" .Chart.AppVersion) .Values.engineImage }}
{{- end }}

{{/*
What the operator may do where engines live: a ClusterRole, or with watchNamespace a Role.
It has to hold every right that it gives to monitors. Of secrets it may make new ones, and read none; no exec, no logs.
*/}}
{{- define "enginehouse.rules" -}}
- apiGroups: [enginehouse.dev]
  resources: [inferenceengines]
  verbs: [get, list, watch]
- apiGroups: [enginehouse.dev]
  resources: [inferenceengines/status]
  verbs: [patch]
- apiGroups: [enginehouse.dev]
  resources: [enginereplicas]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [enginehouse.dev]
  resources: [enginereplicas/status]
  verbs: [patch]
# For owner references that block deletion, where the cluster asks for this right.
- apiGroups: [enginehouse.dev]
  resources: [inferenceengines/finalizers, enginereplicas/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, create, patch]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [list, create, patch]
- apiGroups: [rbac.authorization.k8s.io]
  resources: [roles, rolebindings]
  verbs: [list, create, patch]
# A token for each replica with executor Ray.
- apiGroups: [""]
  resources: [secrets]
  verbs: [create]
# To say that a claim is missing.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end }}
