"""Which storage SOP classes the listener takes, and what each kind may start (PS3.4 Annex B)."""

from pydicom import uid as u

CONTENT = frozenset(
    {
        u.CTImageStorage,
        u.EnhancedCTImageStorage,
        u.LegacyConvertedEnhancedCTImageStorage,
        u.MRImageStorage,
        u.EnhancedMRImageStorage,
        u.LegacyConvertedEnhancedMRImageStorage,
    }
)
"""Only these make a study ready and a revision. Our own results are never of these classes."""

OTHER_IMAGES = frozenset(
    {
        u.EnhancedMRColorImageStorage,
        u.PositronEmissionTomographyImageStorage,
        u.EnhancedPETImageStorage,
        u.ComputedRadiographyImageStorage,
        u.DigitalXRayImageStorageForPresentation,
        u.XRayAngiographicImageStorage,
        u.EnhancedXAImageStorage,
        u.NuclearMedicineImageStorage,
        u.UltrasoundImageStorage,
        u.UltrasoundMultiFrameImageStorage,
        u.SecondaryCaptureImageStorage,
        u.MultiFrameSingleBitSecondaryCaptureImageStorage,
        u.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        u.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
        u.MultiFrameTrueColorSecondaryCaptureImageStorage,
    }
)
"""A series of these is refused with a reason; it changes nothing for its study."""

ACCEPTED = (
    *sorted(CONTENT),
    *sorted(OTHER_IMAGES),
    u.MRSpectroscopyStorage,
    u.BasicTextSRStorage,
    u.EnhancedSRStorage,
    u.ComprehensiveSRStorage,
    u.Comprehensive3DSRStorage,
    u.ExtensibleSRStorage,
    u.XRayRadiationDoseSRStorage,
    u.EnhancedXRayRadiationDoseSRStorage,
    u.PatientRadiationDoseSRStorage,
    u.AcquisitionContextSRStorage,
    u.ProcedureLogStorage,
    u.KeyObjectSelectionDocumentStorage,
    u.GrayscaleSoftcopyPresentationStateStorage,
    u.ColorSoftcopyPresentationStateStorage,
    u.PseudoColorSoftcopyPresentationStateStorage,
    u.BlendingSoftcopyPresentationStateStorage,
    u.AdvancedBlendingPresentationStateStorage,
    u.SegmentationStorage,
    u.SurfaceSegmentationStorage,
    u.ParametricMapStorage,
    u.RealWorldValueMappingStorage,
    u.SpatialRegistrationStorage,
    u.DeformableSpatialRegistrationStorage,
    u.SpatialFiducialsStorage,
    u.RawDataStorage,
    u.EncapsulatedPDFStorage,
    u.EncapsulatedCDAStorage,
)
