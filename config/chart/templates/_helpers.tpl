{{- define "exhaust.name" -}}
{{- if contains "exhaust" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-exhaust{{ end }}
{{- end }}

{{- define "exhaust.labels" -}}
app.kubernetes.io/name: exhaust
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "exhaust.metadata" -}}
name: {{ include "exhaust.name" .root }}-{{ .component }}
labels:
  {{- include "exhaust.labels" . | nindent 2 }}
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{/* Of a pod: no rights, and no variables for each Service, which would look like our settings. */}}
{{- define "exhaust.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets: {{ toJson . }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user | default 10001 }}
  runAsGroup: {{ .user | default 10001 }}
  seccompProfile: {type: RuntimeDefault}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "exhaust.labels" . | nindent 8 }}
volumes:
  - name: scratch
    emptyDir: {}
{{- end }}

{{- define "exhaust.confined" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* A container of our image; the data folder is its own, or other users could look into it. */}}
{{- define "exhaust.container" -}}
image: {{ .root.Values.image.repository }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
{{ include "exhaust.confined" . }}
volumeMounts:
  - {name: scratch, mountPath: /tmp}
envFrom:
  - secretRef: {name: {{ .root.Values.secret }}}
env:
  - {name: EXHAUST_DATA_DIR, value: /tmp/exhaust}
  - {name: EXHAUST_BEHIND_PROXY, value: "true"}
  {{- range $name, $value := .root.Values.settings }}
  - {name: {{ $name }}, value: {{ $value | toString | quote }}}
  {{- end }}
{{- end }}
