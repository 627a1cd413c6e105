# fmt: off
# The identity of this server; the installation writes the school's own values here.
GSTUDIO_INSTITUTE_ID = 'sp100'
GSTUDIO_INSTITUTE_ID_SECONDARY ='00000000'
GSTUDIO_INSTITUTE_NAME = 'clix-default'
